"""`selkern explore` as a program: its address, its ports, its end, and what it says of mistakes."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, PROGRAM

from selkern.cli import main

RUN = "sknet_mini.digits"


def started(*words: str) -> subprocess.Popen[str]:
    command = [*PROGRAM, "explore", RUN, "--no-browser", "--threads", "1", *words]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    result = re.match(r"open (http://\S+) ", process.stdout.readline())
    assert result, process.communicate(timeout=10)
    return result[1]


@pytest.mark.exhaustive
def test_two_take_ports_of_their_own_and_ctrl_c_ends_each_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    processes = [started(), started()]
    try:
        addresses = [address_of(process) for process in processes]
        assert len(set(addresses)) == 2
        for address in addresses:
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert b"selkern explore" in answer.read()
        port = addresses[0].rstrip("/").rpartition(":")[2]
        assert main(["explore", RUN, "--no-browser", "--port", port]) == 5
        assert capsys.readouterr().err.endswith(
            f"error: the port is taken | --port {port} | give another, or leave it out\n"
        )
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            out, err = process.communicate(timeout=20)
            assert process.returncode == 0
            assert out == ""
            assert err.splitlines()[-1] == "stopped"
            assert "Traceback" not in err
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--static", "x", "--port", "9000"], 2, "--static serves nothing"),
        (["--port", "0"], 2, "port is 0 | --port | must lie between 1 and 65535"),
        (["--host", "192.0.2.1"], 2, "no address of this machine | --host 192.0.2.1 | give 127.0.0.1"),
        (["--token", "a b"], 2, "the token has other characters"),
        (["--with", "x=1"], 2, "is for third-party networks | --with"),
        (["--threads", "0"], 2, "threads is 0"),
        (["--data", "no/such/folder"], 3, "no/such/folder"),
        (["--data", "digits", "--split", "half"], 2, "unknown split 'half'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", RUN, "--no-browser", *words]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert line in last


def test_no_such_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "no-such-run", "--no-browser"]) == 4
    assert "no-such-run" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_run_whose_pictures_are_gone_takes_uploads(data: Path, tmp_path: Path) -> None:
    """Trained on a folder that is moved away: the page opens, and says what is missing."""
    import shutil

    pictures = tmp_path / "pictures"
    shutil.copytree(data, pictures)
    words = ["train", "--data", str(pictures), "--model", "sknet_mini", "--epochs", "1", "--no-report"]
    words += ["--output", str(tmp_path / "runs"), "--batch-size", "8"]
    done = subprocess.run([*PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in (tmp_path / "runs").iterdir() if (path / "config.yaml").is_file())
    for gone in (False, True):
        if gone:
            shutil.rmtree(pictures)
        command = [*PROGRAM, "explore", str(run), "--no-browser"]
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                with urllib.request.urlopen(address_of(process) + "api/session", timeout=10) as answer:
                    facts = answer.read().decode()
                assert ("pictures of your own" in facts) == gone
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0
            finally:
                process.kill()
