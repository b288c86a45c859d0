"""Every example script, with the tiny model."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from relay_hf import showcase

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WARNINGS = [
    "error::FutureWarning",
    "error::DeprecationWarning",
    "default::DeprecationWarning:torch",
    "default::FutureWarning:torch",
]
SAYS = {
    "chat_template": [r"of the (\d+) tokens of the system message \1 were kept"] * 2,
    "few_shot_evaluation": [r"\d tokens shared, 0 of them", r"(\d+) tokens shared, \1 of them", "exact match"],
    "group_sampling": [r"16 rows \(0-15\)", r"differ by \d\.\de-0[4-9]", r"(advantage [+-].*){4}"],
    "lora": [r"(\d+) tokens shared, \1 of them", r"answer differently: yes", r"under its own adapter only: yes"],
    "pipeline_batch": [r"4 rows share (\d+) tokens \(\1 kept from before\)"],
    "warm_service": [r"built: (\d+) tokens", r"load (\d+) tokens", r"(\d+) of \d+ prompt tokens came from the file"],
    "streaming": ["first token after"] * 3 + [r"computed 1\d{3}, kept from before 0\n"] + [r"computed \d\d, kept"] * 2,
}


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a script in this process, which has imported what it needs: its exit code, and what was printed."""

    def run(script, *options):
        path = str(EXAMPLES / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *options])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(path, run_name="__main__")
        return left.value.code, capfd.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # a name that peft itself still uses
@pytest.mark.parametrize("script", SAYS)
def test_script_relays_every_call_gives_stocks_outputs_and_says_what_happened(run, script):
    code, text = run(script, "--model", "random", "--size", "tiny")
    assert code == 0, text
    assert "its text is noise" in text
    assert "same outputs as stock: yes" in text
    assert re.search(r"calls relayed: (\d+) of \1; the last: RelayReport\(relayed", text), text
    rest = text
    for expected in SAYS[script]:
        found = re.search(expected, rest)
        assert found, f"{expected!r} is not said, or not in this order:\n{text}"
        rest = rest[found.end() :]


def test_a_script_takes_a_model_from_a_folder_as_a_user_runs_it(tmp_path):
    shown = showcase.load("random", size="tiny")
    shown.model.save_pretrained(tmp_path)
    shown.tokenizer.save_pretrained(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(part for warning in WARNINGS for part in ("-W", warning))]
    command += ["examples/pipeline_batch.py", "--model", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tmp_path}, a LlamaForCausalLM of " in done.stdout


def test_the_index_has_a_row_with_its_commands_for_every_script_and_notebook():
    rows = [line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("| [")]
    listed = {re.match(r"\| \[([\w.]+)\]\(\1\)", row)[1]: row for row in rows}
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(listed) == found
    for name, row in listed.items():
        if name.endswith(".py"):
            assert f"`python examples/{name}` |" in row
