"""The commands over data sets: attack, occlude, verify, report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sdsgsm_fast import MinimalSDSGSM, runs
from sdsgsm_fast.cli.attack_command import PRESETS
from sdsgsm_fast.cli.main import app, main


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_run_a_second_one_and_verify(tmp_path: Path) -> None:
    options = ("attack", "--limit", 20, "--shard-size", 8, "--steps", 4, "--out", tmp_path, "--keep-domain")
    output = run(*options)
    assert "SDSGSM on photos, photos: 320 images, 10 classes, into" in output
    assert "20/20 images" in output
    assert "20 images: " in output
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert "20/20 images\n" in run(*options)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert runs.load(tmp_path).read(0)["domain"].shape == (8, 32, 32)
    assert f"{tmp_path}: sound" in run("verify", tmp_path, "--model", "photos", "--data", "photos")
    (tmp_path / "summary.csv").write_text("")
    assert "problem: summary.csv" in run("verify", tmp_path, code=1)
    assert not run(*options, "--quiet")
    assert "sound" in run("verify", tmp_path)


def test_every_setting_reaches_the_attack(tmp_path: Path) -> None:
    run(
        "attack", "--out", tmp_path, "--limit", 4, "--attack", "MIFGSM", "--eps", 4, "--alpha", 0.5, "--steps", 3,
        "--gain", 0.7, "--decay", 0.9, "--normalize", "rms", "--loss", "margin", "--random-start", "--restarts", 2,
        "--no-early-stop", "--growth", 1.1, "--seed", 7, "--domain", "occlusion", "--patch", 8, "--stride", 4,
        "--score", "logit", "--fill", "0.5,0.4,0.3", "--method", "dense", "--coverage", 0.5, "--background", 0.25, "--relax", "none",
        "--batch-size", 2, "--precision", "float32", "--backend", "reference",
    )  # fmt: skip
    found = json.loads((tmp_path / "manifest.json").read_text())["configuration"]
    assert found["attack"] == "MIFGSM"
    assert found["eps"] == pytest.approx(4 / 255)
    assert found["alpha"] == pytest.approx(0.5 / 255)
    expected = {
        "steps": 3, "gain": 0.7, "decay": 0.9, "normalize": "rms", "loss": "margin", "random_start": True,
        "restarts": 2, "early_stop": False, "growth": 1.1, "seed": 7, "background": 0.25, "relax": None,
        "batch_size": 2, "precision": "float32", "backend": "reference", "levels": None,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["domain"] == {
        "kind": "Occlusion", "patch": 8, "stride": 4, "score": "logit", "fill": [0.5, 0.4, 0.3], "rule": "top",
        "coverage": 0.5, "threshold": 0.5, "method": "dense",
    }  # fmt: skip


def test_presets_keep_their_own_settings(tmp_path: Path) -> None:
    run("attack", "--out", tmp_path, "--limit", 4, "--attack", "MinimalSDSGSM", "--levels", 256)
    found = json.loads((tmp_path / "manifest.json").read_text())["configuration"]
    assert found["refine"] == MinimalSDSGSM.defaults["refine"]
    assert found["alpha"] == pytest.approx(8 / 255 / 32)
    assert found["domain"] is None
    assert set(PRESETS) >= {"SDSGSM", "PGD", "TIFGSM", "ABFGSM", "MinimalSDSGSM"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "Nothing"], "'Nothing' is not one of SDSGSM"),
        (["--domain", "some"], "'some' is not one of occlusion, gradient, none"),
        (["--domain", "none", "--patch", "3"], "none goes without --patch"),
        (["--domain", "gradient", "--stride", "3"], "gradient has no windows: --stride"),
        (["--relax", "often"], "expected a number or none, found 'often'"),
        (["--mean", "0.5"], "expected --mean and --std together"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--eps", "8", "--levels", "99999999"], "levels: expected at most"),
    ],
)
def test_what_is_wrong_ends_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sdsgsm", "attack", "--out", str(tmp_path / "set"), "--limit", "2", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_ctrl_c_ends_after_the_shard(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sdsgsm_fast",
        "attack",
        "--out",
        str(tmp_path),
        "--shard-size",
        "4",
        "--steps",
        "3",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("adv-*.safetensors")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after a shard; the same command again goes on" in said
    assert 1 <= len(list(tmp_path.glob("adv-*.safetensors"))) < 80
    assert len(list(tmp_path.glob("adv-*.sha256"))) == len(list(tmp_path.glob("adv-*.safetensors")))


def test_maps_png_files_and_pages(tmp_path: Path) -> None:
    maps, attacked = tmp_path / "maps", tmp_path / "attacked"
    output = run(
        "occlude", "--limit", 6, "--shard-size", 4, "--out", maps, "--patch", 8, "--fill", "mean", "--keep-scores"
    )
    assert "occlusion maps of photos, photos: 320 images" in output
    assert "6 maps: the model gets" in output
    found = json.loads((maps / "manifest.json").read_text())
    assert found["kind"] == "occlusion"
    assert {k: found["configuration"][k] for k in ("patch", "fill", "keep")} == {
        "patch": 8,
        "fill": "mean",
        "keep": ["scores"],
    }
    assert "maps of photos: the first of each of 2 shards" in run(
        "verify", maps, "--model", "photos", "--data", "photos"
    )
    run("attack", "--limit", 4, "--out", attacked, "--png", "--attack", "BIM")
    assert len(list(attacked.glob("png-00000/*.png"))) == 4
    assert json.loads((attacked / "manifest.json").read_text())["configuration"]["levels"] == 256
    for folder in (maps, attacked):
        assert f"{folder}/report.html: " in run("report", folder)
        assert '"views":["clean",' in (folder / "report.html").read_text()
    assert "verify" not in run("report", attacked, "--out", tmp_path / "page.html", "--gallery", 2)
    assert (
        json.loads((tmp_path / "page.html").read_text().partition('id="data">')[2].partition("</script>")[0])["of"] == 4
    )
    assert "sound" in run("verify", attacked), "a page in its folder is none of the set"


def test_a_page_of_data_that_are_gone(tmp_path: Path) -> None:
    source = tmp_path / "pixels.npz"
    pixels = torch.rand(4, 3, 32, 32).numpy()
    np.savez(source, images=pixels, labels=np.zeros(4, dtype=np.int64))
    run("attack", "--data", source, "--out", tmp_path / "set", "--attack", "BIM", "--steps", 2)
    np.savez(source, images=1 - pixels, labels=np.zeros(4, dtype=np.int64))
    said = run("report", tmp_path / "set")
    assert f"without clean images: {source}: holds other images now" in said
    source.unlink()
    assert f"without clean images: {source}: " in run("report", tmp_path / "set")
    assert '"views":["adversarial"]' in (tmp_path / "set" / "report.html").read_text()
