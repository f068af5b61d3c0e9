from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from batchfree.errors import DataError
from batchfree.study._pets import BREEDS, read_pets
from tests.study.published import PETS, write_pets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "oxford-iiit-pet"
    write_pets(folder)
    return folder


# torchvision's reader leaves the GIF files open for the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_official_split_is_what_torchvisions_reader_gives(folder: Path) -> None:
    images, labels, classes = read_pets(folder, 16, "official")
    for part, split in enumerate(("trainval", "test")):
        theirs = OxfordIIITPet(folder.parent, split=split)
        assert len(theirs) == len(images[part]) == 12
        for index, (image, label) in enumerate(theirs):
            assert np.array_equal(images[part][index], np.asarray(image).transpose(2, 0, 1))
            assert labels[part][index] == label
        assert [classes[label] for label in sorted(set(labels[part].tolist()))] == theirs.classes


def test_the_breeds_are_in_the_order_of_the_alphabet() -> None:
    assert len(BREEDS) == 37
    assert sorted(BREEDS, key=str.lower) == list(BREEDS)


def test_the_blogs_split_holds_out_a_fifth_of_all_images_from_all_over(folder: Path) -> None:
    images, labels, _ = read_pets(folder, 16, "blog")
    assert [len(part) for part in images] == [20, 4]  # 24 - 24 // 5, as the blog's 7378 gave 5903 and 1475
    official, official_labels, _ = read_pets(folder, 16, "official")
    ours, theirs = (
        {
            (image.tobytes(), int(label))
            for part in (0, 1)
            for image, label in zip(parts[part], marks[part], strict=True)
        }
        for parts, marks in ((images, labels), (official, official_labels))
    )
    assert ours == theirs
    # an order by name would hold out the last breed alone
    assert len(set(labels[1].tolist())) > 1
    again, _, _ = read_pets(folder, 16, "blog")
    assert np.array_equal(again[1], images[1])


def test_a_half_extracted_copy_that_torchvision_accepts_is_refused_with_what_is_missing(folder: Path) -> None:
    for path in sorted(folder.glob("images/[Aa]*.jpg"))[:7]:
        path.unlink()
    assert len(OxfordIIITPet(folder.parent)) == 12
    with pytest.raises(DataError, match=r"lacks 7 of the 24 images.*Abyssinian_1\.jpg.* and 2 more.*half extracted"):
        read_pets(folder, 16, "official")
    for path in folder.glob("images/*"):
        path.unlink()
    (folder / "images").rmdir()
    with pytest.raises(DataError, match="lacks 24 of the 24"):
        read_pets(folder, 16, "official")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("Abyssinian_1 1 ", "Abyssinian_1 38 ", "has class 38"),
        ("Abyssinian_1 1 ", "Abyssinian_1 0 ", "has class 0"),
        ("Abyssinian_1 1 ", "Abyssinian_1 2 ", "Abyssinian_1 with class 2, which is american_bulldog"),
        ("Abyssinian_1 1 ", "../../Abyssinian_1 1 ", "which is Abyssinian"),
        ("Abyssinian_1 1 ", "Abyssinian_x 1 ", "which is Abyssinian"),
        ("Abyssinian_1 1 1 1", "Abyssinian_1 1", "line 1 is 'Abyssinian_1 1'"),
        ("Abyssinian_1 1 ", "Abyssinian_3 1 ", "Abyssinian_3 again"),
        ("Abyssinian_1 1 ", "Abyssinian_2 1 ", "Abyssinian_2 is in both"),
        ("Abyssinian_1 1 1 1\n", "", "Abyssinian_1 is in list.txt, but in neither"),
    ],
)
def test_a_damaged_list_is_refused_with_the_line(folder: Path, before: str, after: str, said: str) -> None:
    path = folder / "annotations" / "trainval.txt"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(DataError, match=re.escape(said)):
        read_pets(folder, 16, "official")


def test_an_empty_or_missing_list_is_refused(folder: Path) -> None:
    path = folder / "annotations" / "test.txt"
    path.write_text("")
    with pytest.raises(DataError, match=r"test\.txt lists no image"):
        read_pets(folder, 16, "official")
    path.unlink()
    with pytest.raises(DataError, match=r"does not hold test\.txt.*annotations\.tar\.gz"):
        read_pets(folder, 16, "official")


def test_a_cut_tail_is_taken_and_an_unreadable_image_is_not(folder: Path) -> None:
    path = folder / "images" / f"{PETS[2]}_3.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path, format="JPEG")
    whole, labels, _ = read_pets(folder, 200, "official")
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 10])
    cut, _, _ = read_pets(folder, 200, "official")
    index = int(np.flatnonzero(labels[0] == 1)[1])  # american_bulldog 1, 3 and 5 are in trainval.txt
    assert np.array_equal(cut[0][index, :, :150], whole[0][index, :, :150])
    assert not np.array_equal(cut[0][index], whole[0][index])
    for content in (b"", path.read_bytes()[:100], b"MATLAB 5.0 MAT-file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=str(path)):
            read_pets(folder, 16, "official")
