"""Every python block of the docs runs, in order, in one namespace a file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ["README.md", "docs/decoding.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", DOCS)
def test_python_blocks_run_as_they_stand(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    namespace: dict = {}
    for block in blocks:
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], str(ROOT / name), "exec"), namespace)


def test_the_first_example_of_the_readme_is_relayed():
    namespace: dict = {}
    exec(BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))[1], namespace)
    report = namespace["model"].relay.last
    assert report.relayed, report
    assert report.prefix_length == 256
