"""The documents: links resolve, the site builds without a warning."""

import subprocess
import sys

import pytest
import yaml
from doc_commands import PAGES, broken_links


def test_links_resolve():
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# One\n[a](page.md#one) [b](page.md#two) ![c](no.png) [d](http://x)")
    monkeypatch.setattr("doc_commands.ROOT", tmp_path)
    assert broken_links("page.md") == [
        "page.md: page.md has no heading #two",
        "page.md: no.png does not exist",
    ]


def test_the_site_builds_without_warnings(root, tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, root / "docs", tmp_path / "site", "-d", tmp_path / "doctrees"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in root.glob("docs/*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}


def test_the_citation_is_valid_and_of_this_version(root):
    import lookupjax

    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == lookupjax.__version__
