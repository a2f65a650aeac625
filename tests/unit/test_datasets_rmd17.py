"""rMD17 as a tree, an archive and a download, made small."""

import functools
import hashlib
import http.server
import tarfile
import threading

import numpy as np
import pytest

from uqbench.data.sources.rmd17 import RMD17
from uqbench.errors import DataError

FRAMES = 60
MD5 = "0" * 32  # of no file


def rmd17(root=None, **changes):
    arguments = {"molecule": "ethanol", "split": 1, "n_train": None, "validation_fraction": 0.2, "split_seed": 0}
    arguments |= {"data_root": None if root is None else str(root), "cache": None, "url": None, "md5": MD5}
    return RMD17(**(arguments | changes))


def make_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": rng.normal(size=(FRAMES, 3, 3)) * 0.1 + [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
        "energies": rng.normal(size=FRAMES),
        "forces": rng.normal(size=(FRAMES, 3, 3)),
        # Rows of another file: used as rows here they would be out of range.
        "old_indices": rng.integers(1000, 100_000, FRAMES),
    }


def make_tree(folder):
    (folder / "npz_data").mkdir(parents=True)
    (folder / "splits").mkdir()
    for k, molecule in enumerate(("ethanol", "aspirin")):
        np.savez(folder / f"npz_data/rmd17_{molecule}.npz", **make_arrays(k))
    for split in range(1, 6):
        rows = np.random.default_rng(split).permutation(FRAMES)
        np.savetxt(folder / f"splits/index_train_{split:02d}.csv", rows[:20], fmt="%d")
        np.savetxt(folder / f"splits/index_test_{split:02d}.csv", rows[20:50], fmt="%d")


@pytest.fixture
def root(tmp_path):
    make_tree(tmp_path / "data" / "rmd17")
    return tmp_path / "data"


@pytest.fixture
def archive(tmp_path):
    make_tree(tmp_path / "made" / "rmd17")
    path = tmp_path / "archive" / "rmd17.tar.bz2"
    path.parent.mkdir()
    with tarfile.open(path, "w:bz2") as tar:
        tar.add(tmp_path / "made" / "rmd17", "rmd17")
    return path


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("split", [1, 5])
def test_the_official_frames_in_electronvolts(root, split):
    dataset = rmd17(root, split=split)
    structures = dataset.load()
    splits = dataset.split(structures)
    arrays, rows = make_arrays(), np.random.default_rng(split).permutation(FRAMES)
    assert dataset.subset == "ethanol"
    assert {name: len(chosen) for name, chosen in splits.items()} == {"train": 16, "validation": 4, "test": 30}
    assert sorted(structures.ids[splits["test"]]) == sorted(rows[20:50])
    assert sorted(structures.ids[np.concatenate([splits["train"], splits["validation"]])]) == sorted(rows[:20])
    for name, chosen in splits.items():
        part = structures[chosen]
        np.testing.assert_array_equal(part.positions.reshape(-1, 3, 3), arrays["coords"][part.ids], err_msg=name)
        np.testing.assert_allclose(part.energies, arrays["energies"][part.ids] * 0.0433641039, rtol=1e-7)
        np.testing.assert_allclose(part.forces.reshape(-1, 3, 3), arrays["forces"][part.ids] * 0.0433641039, rtol=1e-7)
        assert part.numbers[:3].tolist() == [8, 1, 1]


def test_validation_follows_its_own_seed_and_the_test_never_moves(root):
    structures = rmd17(root).load()
    first, second = (rmd17(root, split_seed=seed).split(structures) for seed in (0, 1))
    assert not np.array_equal(first["validation"], second["validation"])
    assert np.array_equal(first["test"], second["test"])
    few = rmd17(root, n_train=10).split(structures)
    assert {name: len(chosen) for name, chosen in few.items()} == {"train": 8, "validation": 2, "test": 30}
    with pytest.raises(DataError, match="need 21 frames, the data set has 20"):
        rmd17(root, n_train=21).split(structures)


def test_a_split_file_that_points_past_the_end(root):
    with open(root / "rmd17/splits/index_test_01.csv", "a") as file:
        file.write(f"{FRAMES}\n")
    with pytest.raises(DataError, match=r"points at frame 60, but .*rmd17_ethanol.npz has frames 0..59"):
        rmd17(root).load()
    (root / "rmd17/splits/index_test_01.csv").write_text("-1\n")
    with pytest.raises(DataError, match="points at frame -1"):
        rmd17(root).load()


@pytest.mark.parametrize("text, message", [("1.5\n", "one whole number a line"), ("", "names no frame")])
def test_split_files_that_are_none(root, text, message):
    (root / "rmd17/splits/index_train_01.csv").write_text(text)
    with pytest.raises(DataError, match=f"index_train_01.csv: .*{message}"):
        rmd17(root).load()


def test_a_frame_in_train_and_test(root):
    (root / "rmd17/splits/index_train_01.csv").write_text("1\n2\n3\n4\n5\n")
    (root / "rmd17/splits/index_test_01.csv").write_text("3\n7\n")
    dataset = rmd17(root)
    with pytest.raises(DataError, match="share frame"):
        dataset.split(dataset.load())


def test_only_the_frames_of_the_split_must_be_sound(root):
    arrays, rows = make_arrays(), np.random.default_rng(1).permutation(FRAMES)
    arrays["forces"][rows[55]] = np.nan
    np.savez(root / "rmd17/npz_data/rmd17_ethanol.npz", **arrays)
    rmd17(root).load()
    arrays["forces"][rows[0]] = np.nan
    np.savez(root / "rmd17/npz_data/rmd17_ethanol.npz", **arrays)
    with pytest.raises(DataError, match=f"forces are not finite in 1 frame.*first frame {rows[0]};"):
        rmd17(root).load()


def test_missing_or_damaged_files(root, tmp_path):
    with pytest.raises(DataError, match="^data_root .*/nowhere is not a folder; set data_root=FOLDER"):
        rmd17(tmp_path / "nowhere").load()
    with pytest.raises(DataError, match=f"^{root}/rmd17/npz_data/rmd17_benzene.npz does not exist; put"):
        rmd17(root, molecule="benzene").load()
    path = root / "rmd17/npz_data/rmd17_ethanol.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="rmd17_ethanol.npz cannot be read as an npz file"):
        rmd17(root).load()
    np.savez(path, **{k: v for k, v in make_arrays().items() if k != "forces"})
    with pytest.raises(DataError, match="rmd17_ethanol.npz has no array forces"):
        rmd17(root).load()
    np.savez(path, **make_arrays() | {"energies": np.zeros(59)})
    with pytest.raises(DataError, match="differ in their number of frames"):
        rmd17(root).load()


def test_an_archive_in_the_data_root_is_unpacked_into_the_cache(archive, root, tmp_path):
    dataset = rmd17(archive.parent, cache=str(tmp_path / "cache"), md5=md5_of(archive))
    assert dataset.load().sha256() == rmd17(root).load().sha256()
    unpacked = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert "rmd17_ethanol.npz" in unpacked and "rmd17_aspirin.npz" not in unpacked and len(unpacked) == 11
    assert [path.name for path in archive.parent.iterdir()] == ["rmd17.tar.bz2"]
    # Once unpacked the archive is not read again for the same molecule, but it is for another.
    assert len(rmd17(archive.parent, cache=str(tmp_path / "cache"), md5=md5_of(archive), split=3).load()) == 50
    rmd17(archive.parent, cache=str(tmp_path / "cache"), md5=md5_of(archive), molecule="aspirin").load()


def test_a_damaged_archive_is_not_used(archive, tmp_path):
    with pytest.raises(DataError, match=f"rmd17.tar.bz2 has the md5 {md5_of(archive)}, not {MD5}"):
        rmd17(archive.parent, cache=str(tmp_path / "cache")).load()
    assert not (tmp_path / "cache").exists()


def test_the_archive_is_downloaded_into_the_cache(archive, root, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    settings = {"cache": str(tmp_path / "cache"), "md5": md5_of(archive)}
    empty = tmp_path / "empty"
    empty.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/rmd17.tar.bz2"
        structures = rmd17(empty, url=url, **settings).load()
        server.shutdown()
    assert structures.sha256() == rmd17(root).load().sha256()
    assert not any(empty.iterdir())
    # Now everything works without a network.
    assert rmd17(None, **settings, molecule="aspirin").load().sha256() != structures.sha256()


def test_without_data_and_network_the_message_says_what_to_put_where(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(DataError) as caught:
        rmd17(None, cache=str(cache)).load()
    for part in ("rmd17.tar.bz2", MD5, str(cache), "rmd17/npz_data", "dataset.url is null"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/x \(no connection.*put it into"):
        rmd17(None, cache=str(cache), url="http://127.0.0.1:9/x").load()
