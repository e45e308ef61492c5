"""The command line's crops: found, by hand, followed, pasted back, and refused in one sentence."""

import shutil

import numpy as np
import pytest
from commands import RATE, animate, frames_of, write_clip
from PIL import Image

from face import DETECTOR_FILE, scene
from hub_stand_in import use_hub
from personalive_core.cli.crop_options import CropOptions
from personalive_core.cli.main import _parser
from personalive_core.errors import InputError
from personalive_core.framing import crop as crop_module
from personalive_core.framing.crop import Crop, crop_portrait
from personalive_core.framing.driving_crop import MODES, DrivingCropSettings, open_driving_crop
from personalive_core.framing.face_detector import Box, load_detector
from personalive_core.framing.paste_back import PasteBack
from personalive_core.media.video_writer import VideoWriter
from personalive_core.weights import hub
from personalive_core.weights.hub import DETECTORS

PLACES = (40, 60, 176), (361, 60, 220)


@pytest.fixture
def group(tmp_path):
    """Two people in a picture of odd size."""
    path = tmp_path / "group.png"
    Image.fromarray(scene(*PLACES)[:, :639]).save(path)
    return path


@pytest.fixture
def detector():
    pytest.importorskip("cv2", reason="OpenCV is not installed, which runs the detector")
    return str(DETECTOR_FILE)


@pytest.mark.parametrize("face, place", [("0", PLACES[0]), ("largest", PLACES[1])])
def test_crop_finds_the_face_that_is_chosen(weights, group, detector, tmp_path, face, place):
    preview = tmp_path / "preview.png"
    options = ["--crop", "--detector", detector, "--face", face, "--crop-preview", str(preview)]
    assert animate(weights, group, group, tmp_path / "out.mp4", *options) == 0
    assert frames_of(tmp_path / "out.mp4").shape == (1, 128, 128, 3)
    drawn = np.asarray(Image.open(preview))
    columns = np.nonzero((drawn == (255, 255, 0)).all(-1))[1]
    assert abs((columns.min() + columns.max()) / 2 - place[0] - place[2] / 2) < 25
    assert 0.9 < (columns.max() - columns.min()) / place[2] < 1.6


def test_pasted_back_at_native_size(weights, group, tmp_path):
    driving = write_clip(tmp_path / "driving.mp4", 3)
    assert animate(weights, group, driving, tmp_path / "square.mp4", "--crop", "40,60,176") == 0
    assert animate(weights, group, driving, tmp_path / "out.mp4", "--crop", "40,60,176", "--paste-back") == 0
    squares, result = frames_of(tmp_path / "square.mp4"), frames_of(tmp_path / "out.mp4")
    assert result.shape == (3, 400, 638, 3)
    picture = scene(*PLACES)[:, :639]
    back = PasteBack(Crop(40, 60, 176, 639, 400), 128)
    outside = back.mask[:, :638] == 0
    assert np.abs(result[:, outside].astype(int) - picture[:, :638][outside]).mean() < 1.5  # but for the coding
    for square, frame in zip(squares, result, strict=True):
        expected = back.paste(picture, square)[:, :638]
        assert np.abs(frame.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("mode, detected", [([], True), (["fixed"], True), (["per-frame"], True), ([], False)])
def test_the_driving_video_is_cropped(weights, portrait, detector, tmp_path, mode, detected):
    driving = tmp_path / "driving.mp4"
    with VideoWriter(driving, 640, 400, RATE) as video:
        for i in range(3):
            video.write(scene((40 + 10 * i, 60, 220)), i / RATE)
    options = ["--crop-driving", *mode, *(["--detector", detector] if detected else [])]
    assert animate(weights, portrait, driving, tmp_path / "whole.mp4") == 0
    assert animate(weights, portrait, driving, tmp_path / "cropped.mp4", *options) == 0
    whole, cropped = (frames_of(tmp_path / f"{name}.mp4") for name in ("whole", "cropped"))
    assert len(cropped) == 3
    assert not np.array_equal(whole, cropped)


@pytest.mark.parametrize("detected", [True, False])
def test_a_driver_who_leaves_is_reported(weights, portrait, detector, tmp_path, capsys, detected):
    driving = tmp_path / "driving.mp4"
    with VideoWriter(driving, 640, 400, RATE) as video:
        for i in range(14):
            frame = scene((200, 60, 222)).copy() if not 3 <= i < 9 else scene().copy()
            frame[350:, :200] = 90  # furniture, so that the picture is not empty without the face
            video.write(frame, i / RATE)
    sheet = tmp_path / "sheet.png"
    options = ["--crop-driving", "--margin", "1", "--mirror", "--sheet", str(sheet)]
    options += ["--detector", detector] if detected else []
    assert animate(weights, portrait, driving, tmp_path / "out.mp4", *options) == 0
    assert len(frames_of(tmp_path / "out.mp4")) == 14
    assert ("in 3 of 14 frames: 6 to 8 (no face)" in capsys.readouterr().err) == detected
    with Image.open(sheet) as image:
        assert image.size == (7 * 128, 4 * 128)  # whole frame, driver, keypoints, result
        whole = np.asarray(image)[:128, :128].astype(int)
    assert not whole[:24].any() and not whole[-24:].any()  # all of it, between black bars
    columns = np.nonzero((whole[..., :2].min(-1) - whole[..., 2] > 60).any(0))[0]  # the yellow square
    if detected:
        assert abs((columns.min() + columns.max()) / 2 - (128 - (200 + 222 / 2) / 5)) < 4


def crop_options(picture, driving, *more) -> CropOptions:
    inputs = ["--ref-image", str(picture), "--driving-video", str(driving), "-W", "128", "-H", "128"]
    return CropOptions(_parser().parse_args(["animate", *inputs, *more]))


def test_the_portrait_is_cropped_as_in_the_library(group, detector):
    options = ["--detector", detector, "--face", "0", "--margin", "0.3", "--vertical-offset", "-0.1"]
    cropped = crop_options(group, group, "--crop", *options).portrait(None, "cpu")
    picture = scene(*PLACES)[:, :639]
    found = crop_portrait(picture, detector=load_detector(detector), choice="0", margin=0.3, vertical_offset=-0.1)
    assert np.array_equal(cropped, found.crop.cut(picture, 128))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("face, followed", [("largest", "largest"), ("centre", "centre"), ("1", "largest")])
def test_the_driver_is_followed_as_in_the_library(portrait, detector, tmp_path, mode, face, followed):
    """And it is the face that was asked for."""
    frame = scene((40, 60, 220), (360, 90, 130))
    driving = tmp_path / "driving.png"
    Image.fromarray(frame).save(driving)
    cut, expected = (
        crop_options(portrait, driving, "--crop-driving", mode, "--detector", detector, "--face", face).driving.cropper(
            None, "cpu"
        ),
        open_driving_crop(
            DrivingCropSettings(mode, followed), [frame], detector=load_detector(detector), extractor=lambda: None
        ).cut,
    )
    assert np.array_equal(cut(frame).pixels, expected(frame).pixels)
    other = DrivingCropSettings(mode, "centre" if followed == "largest" else "largest")
    cut_other = open_driving_crop(other, [frame], detector=load_detector(detector), extractor=lambda: None).cut
    assert not np.array_equal(cut_other(frame).pixels, expected(frame).pixels)


def test_yunet_by_name(group, detector, tmp_path, monkeypatch):
    """It is fetched into the weights folder if that is allowed, and used from there."""
    options = ["--crop", "--detector", "yunet", "--weights", str(tmp_path)]
    with pytest.raises(InputError, match=r"yunet is not there yet: download it .*/opencv/face_detection_yunet/"):
        crop_options(group, group, *options)
    use_hub(monkeypatch, "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setattr(hub, "_TRIES", 1)
    with pytest.raises(InputError, match=r"yunet_2023mar\.onnx could not be fetched"):
        crop_options(group, group, *options, "--download")
    file = tmp_path / DETECTORS["yunet"].target
    file.parent.mkdir(exist_ok=True)
    shutil.copy(detector, file)
    for more in [], ["--download"]:
        named = crop_options(group, group, *options, *more).portrait(None, "cpu")
        assert np.array_equal(named, crop_options(group, group, *options[:2], detector).portrait(None, "cpu"))


def test_keypoints_refine_the_detectors_box(weights, group, detector, tmp_path, monkeypatch):
    """The untrained keypoints show nothing, so what they say is put in their place."""
    asked = []

    def refine(extractor, picture, face, device):
        asked.append(face)
        return Box(100, 100, 100, 100)

    monkeypatch.setattr(crop_module, "refine_face", refine)
    preview = tmp_path / "preview.png"
    options = ["--crop", "--detector", detector, "--refine", "--vertical-offset", "0", "--crop-preview", str(preview)]
    assert animate(weights, group, group, tmp_path / "out.mp4", *options) == 0
    assert len(asked) == 1
    rows, columns = np.nonzero((np.asarray(Image.open(preview)) == (255, 255, 0)).all(-1))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 50, 249, 249)


def test_cropping_by_keypoints_alone(weights, group, tmp_path):
    assert animate(weights, group, group, tmp_path / "out.mp4", "--crop", "--paste-back", "--match-colours") == 0
    assert frames_of(tmp_path / "out.mp4").shape == (1, 400, 638, 3)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--crop", "1,2"], "--crop is '1,2'"),
        (["--crop", "900,0,50"], "outside the picture of 639 x 400"),
        (["--crop", "-H", "256"], "-W is 128 and -H 256"),
        (["--crop", "--margin", "-1"], "the margin is -1"),
        (["--paste-back", "--feather", "2"], "feather is 2"),
        (["--crop", "--detector", "face.txt"], "face.txt is no face detector"),
        (["--crop", "--vertical-offset", "9"], "the vertical offset is 9"),
        (["--crop", "--face", "5"], "number 5: the picture has 2"),
    ],
)
def test_bad_input_is_one_sentence(weights, group, detector, tmp_path, capsys, more, words):
    detector_options = ["--detector", detector] if "--face" in more else []
    before = {path.name for path in tmp_path.iterdir()}
    assert animate(weights, group, group, tmp_path / "out.mp4", *detector_options, *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ")
    assert {path.name for path in tmp_path.iterdir()} == before
