"""Cutting the square and setting it back: what must not change does not, whatever the square's size and place."""

import numpy as np
import pytest
import torch
from PIL import Image

from face import draw_face, find_drawn_faces, scene
from personalive_core.errors import InputError
from personalive_core.framing.crop import Crop, crop_portrait, draw_crop, find_by_keypoints, refine_face
from personalive_core.framing.face_detector import Box
from personalive_core.framing.paste_back import PasteBack
from personalive_core.media.pictures import read_picture
from personalive_core.networks.head_pose import HeadPose
from personalive_core.networks.motion_extractor import MotionExtractor
from tiny import TINY, seeded

SIZE = 64  # what the model would make
WIDTH, HEIGHT = 301, 223
SQUARES = [  # left, top, side: smaller and larger than SIZE, between pixels, over each edge, larger than the picture
    (100, 60, 64),
    (100, 60, 128),
    (10, 20, 31),
    (40.5, 30.25, 150.75),
    (0, 0, 223),
    (78, 0, 223),
    (-20.3, -35.6, 120),
    (220, 150.5, 130.1),
    (-60, -80, 400),
    (150.2, 90.9, 33.3),
]

every_square = pytest.mark.parametrize("square", SQUARES, ids=str)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Noise over a slope: nothing is kept by chance."""
    noise = np.random.default_rng(0).integers(0, 120, (HEIGHT, WIDTH, 3))
    return (noise + np.linspace(0, 135, WIDTH)[None, :, None]).astype(np.uint8)


def paster(square, **options) -> PasteBack:
    return PasteBack(Crop(*square, WIDTH, HEIGHT), SIZE, **options)


@every_square
@pytest.mark.parametrize("match_colours", [False, True])
def test_round_trip(picture, square, match_colours):
    back = paster(square, match_colours=match_colours)
    result = back.paste(picture, back.crop.cut(picture, SIZE))
    outside = back.mask == 0
    assert 0 < outside.mean() < 1 or square == SQUARES[-2]
    assert np.array_equal(result[outside], picture[outside])
    assert np.abs(result.astype(int) - picture)[~outside].max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_round_trip_of_a_rotated_file(picture, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    height, width = upright.shape[:2]
    assert (width, height) == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    back = PasteBack(Crop.around(Box(60, 50, 70, 80), width, height), SIZE)
    result = back.paste(upright, back.crop.cut(upright, SIZE))
    assert np.array_equal(result[back.mask == 0], upright[back.mask == 0])
    assert np.abs(result.astype(int) - upright).max() <= 2


@every_square
def test_outside_the_mask_nothing_changes_and_inside_the_animation_is_shown(picture, square):
    back = paster(square)
    before = picture.copy()
    animated = np.full((SIZE, SIZE, 3), (250, 5, 120), np.uint8)
    result = back.paste(picture, animated)
    assert np.array_equal(picture, before)
    assert np.array_equal(result[back.mask == 0], picture[back.mask == 0])
    full = back.mask == 1
    assert full.any()
    assert np.abs(result[full].astype(int) - animated[0, 0]).max() <= 1  # no ghost of the picture's detail


def test_unmoved_places_keep_the_pictures_detail_and_moved_ones_have_none_of_it():
    fine = (np.indices((256, 256)).sum(0) % 2 * 200 + 20)[..., None].repeat(3, 2).astype(np.uint8)
    back = PasteBack(Crop(0, 0, 256, 256, 256), SIZE, feather=0)
    animated = back.crop.cut(fine, SIZE).copy()
    animated[:, : SIZE // 2] += 100
    result = back.paste(fine, animated).astype(int)
    assert np.array_equal(result[:, 192:], fine[:, 192:])
    assert result[40:-40, :64].std() < 3


@pytest.mark.parametrize("value", [(60, 0, 0), (0, -40, 20)])
def test_colours_are_matched_at_the_seam(value):
    smooth = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    crop = Crop(60, 40, 128, WIDTH, HEIGHT)
    animated = (crop.cut(smooth, SIZE) + np.array(value)).astype(np.uint8)
    animated[24:40, 24:40] = 0  # what the picture shows inside must not count
    plain, matched = (PasteBack(crop, SIZE, match_colours=on).paste(smooth, animated) for on in (False, True))
    middle = np.s_[55:65, 90:100]
    assert np.abs(plain[middle].astype(int) - 120).max() == max(map(abs, value))
    assert np.abs(matched[middle].astype(int) - 120).max() <= 1


def test_each_frame_of_a_video_keeps_its_own_surroundings(picture):
    back = paster(SQUARES[1])
    frames = [picture, picture[::-1].copy(), 255 - picture]
    for frame in frames:
        result = back.paste(frame, back.crop.cut(frame, SIZE))
        assert np.abs(result.astype(int) - frame).max() <= 2


def test_the_mask_is_soft_round_and_open_at_the_pictures_edge():
    mask = PasteBack(Crop(50, 123, 100, WIDTH, HEIGHT), SIZE, feather=0.2).mask
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.float32
    assert mask[:123].max() == mask[:, :50].max() == mask[:, 150:].max() == 0
    assert mask[124:128, 51:55].max() == 0  # the corner
    middle = mask[123:, 100]
    assert (np.diff(middle) >= 0).all() and 0 < middle[3] < 0.2 and middle[20] == 1
    assert np.abs(np.diff(middle)).max() < 0.1
    assert mask[-1, 100] == 1  # below there is nothing to blend with
    hard = PasteBack(Crop(50, 123, 100, WIDTH, HEIGHT), SIZE, feather=0).mask
    assert set(np.unique(hard)) == {0, 1}


def test_cutting_shrinks_without_aliasing_and_repeats_the_edge():
    stripes = (np.arange(256) % 2 * 255).astype(np.uint8)[None, :, None].repeat(256, 0).repeat(3, 2)
    small = Crop(0, 0, 256, 256, 256).cut(stripes, 32)
    assert small[2:-2, 2:-2].std() < 3 and abs(small.mean() - 127) < 3
    flat = np.full((40, 60, 3), (10, 20, 30), np.uint8)
    assert (Crop(-30, -30, 90, 60, 40).cut(flat, 48) == (10, 20, 30)).all()
    exact = np.random.default_rng(1).integers(0, 255, (80, 90, 3), np.uint8)
    assert np.array_equal(Crop(13, 7, 48, 90, 80).cut(exact, 48), exact[7:55, 13:61])


def test_the_square_around_a_face():
    crop = Crop.around(Box(400, 300, 80, 100), 1000, 800, margin=0.5, vertical_offset=0.1)
    assert (crop.side, crop.left, crop.top) == (200, 340, 260)
    high = Crop.around(Box(400, 0, 80, 100), 1000, 800, margin=0.5, vertical_offset=0)
    assert (high.side, high.left, high.top) == (200, 340, 0)  # moved in
    large = Crop.around(Box(400, 300, 80, 700), 1000, 800, margin=0.5, vertical_offset=0)
    assert (large.side, large.top) == (800, 0)  # no larger than the picture
    assert Crop.centred(1000, 800) == Crop(100, 0, 800, 1000, 800)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Crop(300, 0, 50, 200, 100), "outside"),
        (lambda: Crop(0, -50, 50, 200, 100), "outside"),
        (lambda: Crop(0, 0, 0, 200, 100), "outside"),
        (lambda: Crop(0, 0, 5000, 200, 100), "far larger"),
        (lambda: PasteBack(Crop(0, 0, 50, 200, 100), SIZE, feather=0.6), "feather is 0.6"),
        (lambda: paster(SQUARES[0]).paste(np.zeros((9, 9, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)), "9 x 9"),
        (lambda: Crop(0, 0, 50, 200, 100).cut(np.zeros((200, 100, 3), np.uint8), SIZE), "100 x 200"),
        (
            lambda: paster(SQUARES[0]).paste(
                np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
            ),
            "128 x 64",
        ),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


class Dots:
    """Stands for a motion extractor: its face lies where the picture is bright."""

    config = TINY.motion_extractor

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def __call__(self, pixels: torch.Tensor) -> HeadPose:
        """Keypoints on the outline of the bright spot, which make a face box of about its size."""
        rows, columns = torch.nonzero(pixels[0].mean(0) > 0.5, as_tuple=True)
        ends = [(x.min().item(), x.max().item()) if len(x) else (127, 129) for x in (columns, rows)]
        (left, right), (top, bottom) = ((v / 128 - 1 for v in pair) for pair in ends)
        keypoints = torch.zeros(1, 21, 3)
        middle, radius = torch.tensor([(left + right) / 2, (top + bottom) / 2]), (bottom - top) / 3.4
        for i, dot in enumerate((1, 2, 3, 4, 12, 15, 20)):
            angle = torch.tensor(2 * torch.pi * i / 7 - torch.pi / 2)
            keypoints[0, dot, :2] = middle + radius * torch.stack([angle.cos(), angle.sin()])
        nothing = torch.zeros(1, 3)
        return HeadPose(nothing, nothing, torch.ones(1, 1), keypoints)


def test_keypoints_refine_a_box():
    picture = np.zeros((400, 600, 3), np.uint8)
    picture[150:250, 320:420] = 255
    face = refine_face(Dots(), picture, Box(260, 120, 200, 200))
    assert np.hypot(face.centre[0] - 370, face.centre[1] - 200) < 10
    assert abs(face.side - 100) < 15


def test_a_box_without_a_face_in_it_stays(caplog):
    box = Box(50, 60, 100, 110)
    assert refine_face(Dots(), np.zeros((400, 600, 3), np.uint8), box) == box
    assert "stays" in caplog.text


def test_refining_takes_the_networks_own_keypoints():
    extractor = seeded(MotionExtractor(TINY.motion_extractor, device="meta"), "motion_extractor")
    face = refine_face(extractor, draw_face(), Box(60, 40, 130, 160))
    assert all(np.isfinite(face)) and face.side > 1


def test_the_portraits_face_by_a_detector_by_boxes_and_by_keypoints():
    """The first that is given says where it is, and the extractor is not loaded for nothing."""
    picture = scene((40, 60, 176), (361, 60, 220))
    height, width = picture.shape[:2]
    faces = find_drawn_faces(picture, 0)

    def refused():
        raise AssertionError("the extractor is not needed")

    found = crop_portrait(picture, detector=find_drawn_faces, extractor=refused, margin=0.6, vertical_offset=0.2)
    assert found.faces == faces and found.face == faces[1]
    assert found.crop == Crop.around(faces[1], width, height, 0.6, 0.2)
    assert crop_portrait(picture, detector=find_drawn_faces, choice="0").face == faces[0]
    boxes = [Box(100, 90, 50, 60)]
    found = crop_portrait(picture, boxes=boxes, detector=find_drawn_faces, extractor=refused)
    assert found.faces == boxes and found.face == boxes[0]

    bright = np.zeros((400, 600, 3), np.uint8)
    bright[150:250, 320:420] = 255
    found = crop_portrait(bright, extractor=Dots)
    assert found.faces == [] and found.face == find_by_keypoints(Dots(), bright)
    box = Box(260, 120, 200, 200)
    refined = crop_portrait(bright, boxes=[box], extractor=Dots, refine=True)
    assert refined.faces == [box] and refined.face == refine_face(Dots(), bright, box) != box


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(), "nothing says where the face is"),
        (dict(boxes=[]), "no face was found"),
        (dict(boxes=[Box(9, 9, 9, 9)], choice="1"), "no face of number 1"),
        (dict(boxes=[Box(9, 9, 9, 9)], refine=True), "to refine the box"),
        (dict(boxes=[Box(9, 9, 9, 9)], margin=6), "the margin is 6"),
    ],
)
def test_no_portrait_crop(options, words):
    with pytest.raises(InputError, match=words):
        crop_portrait(scene(), **options)


def test_the_preview_shows_square_and_faces():
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    faces = [Box(20, 20, 40, 50), Box(120, 60, 60, 60)]
    drawn = draw_crop(picture, Crop.around(faces[1], WIDTH, HEIGHT), faces, faces[1])
    colours = {tuple(colour) for colour in drawn.reshape(-1, 3)}
    assert {(255, 255, 0), (0, 255, 0), (255, 255, 255)} <= colours
    assert picture.max() == 0
