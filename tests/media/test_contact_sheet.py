import numpy as np
import pytest

from personalive_core.media.contact_sheet import ContactSheet


def shown(sheet):
    """The numbers of the frames on a sheet of flat pictures, each as bright as its number."""
    return np.asarray(sheet.image())[0, :: sheet.tile, 0].tolist()


@pytest.mark.parametrize("columns", [5, 12])
def test_evenly_spaced_and_never_more_than_the_columns(columns):
    sheet = ContactSheet(columns, tile=8)
    for i in range(100):
        is_wanted = sheet.wants(i)
        sheet.add_result(i, np.full((16, 24, 3), i, np.uint8))
        numbers = shown(sheet)
        assert (numbers[-1] == i) == is_wanted
        assert min(i + 1, columns / 2) <= len(numbers) <= columns
        assert numbers == list(range(0, i + 1, sheet._step))


def test_a_question_changes_nothing():
    sheet = ContactSheet(4, tile=8)
    for i in range(4):
        sheet.add_result(i, np.full((8, 8, 3), i, np.uint8))
    assert sheet.wants(1000) == (1000 % 256 == 0) and not sheet.wants(1001)
    assert shown(sheet) == [0, 1, 2, 3]


def test_only_frames_that_every_kind_has():
    sheet = ContactSheet(4, tile=8)
    for i in range(4):
        sheet.add_driver_crop(i, np.full((8, 8, 3), i, np.uint8), is_held=i == 1)
    for i in range(3):
        sheet.add_driving_frame(i, np.full((4, 8, 3), 50, np.uint8))
    image = np.asarray(sheet.image())
    assert image.shape == (16, 24, 3)
    assert image[0, 0].tolist() == [0, 0, 0] and image[4, 0].tolist() == [50, 50, 50]  # padded, not cut
    assert image[8, 8].tolist() == [229, 57, 53] and image[8, 16].tolist() == [2, 2, 2]
