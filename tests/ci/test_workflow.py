"""The workflow of GitHub: it runs scripts that there are, with Pythons that have lock files."""

import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
LOCKED = {path.stem.removeprefix("python") for path in (ROOT / "requirements").glob("python*.txt")}


def test_each_job_runs_a_script_of_the_project():
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in JOBS.items()}
    scripts = {name: runs[0].split()[0] for name, runs in commands.items() if len(runs) == 1}
    assert scripts == {"all": ".ci/run", "locked": ".ci/locked", "newest": ".ci/drift"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts.values())


def test_each_lock_file_has_a_job():
    oldest = re.search(r'^requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert JOBS["all"]["steps"][1]["with"]["python-version"] == oldest
    assert {oldest, *JOBS["locked"]["strategy"]["matrix"]["python"]} == LOCKED
