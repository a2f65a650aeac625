"""The wheel carries configs, data and the sources of kernels, and works installed outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uqbench.models.compiled.build import SOURCES

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_repository(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = subprocess.run(
        [*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path / "dist", REPOSITORY],
        capture_output=True,
        text=True,
    )
    if build.returncode and "hatchling" in build.stderr:
        pytest.skip("the build backend hatchling cannot be fetched here")
    assert build.returncode == 0, build.stderr
    (wheel,) = (tmp_path / "dist").glob("uqbench-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def uqbench(*argv):
        command = [sys.executable, "-m", "uqbench", *argv]
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "quickstart" in uqbench("train", "--cfg", "job")
    assert str(site) in uqbench("data")  # the embedded data of the wheel, not of the checkout
    assert not list(elsewhere.iterdir())
    shipped = {path.name for path in (site / "uqbench" / "models" / "compiled").iterdir()}
    assert shipped >= {path.name for path in SOURCES}, "without them there are only the slow kernels"
