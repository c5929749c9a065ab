"""The site builds without a warning, and every link of it, of the README and of the other pages leads somewhere."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

from tests.docs.blocks import PAGES, ROOT

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "ZOO_DOCS_LESSONS": "none"},  # they run in tests/lessons
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0 and "WARNING" not in ended.stderr, ended.stderr
    return folder


class Page(html.parser.HTMLParser):
    """Ids and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    broken, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            target, _, fragment = link.partition("#")
            if urllib.parse.urlsplit(link).scheme:
                continue
            checked += 1
            there = (path.parent / urllib.parse.unquote(target)).resolve() if target else path
            if there.is_dir():
                there = there / "index.html"
            known = pages.get(there)
            if not there.exists() or (fragment and known and urllib.parse.unquote(fragment) not in known.ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, "\n".join(broken)
    assert checked > 1000


def test_the_reference_has_every_public_name(site):
    import zoo

    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    listed = set(re.findall(r"<code>zoo\.(\w+)</code>", text))
    assert set(zoo._MODULES) <= listed
    ids = set().union(*(Page(path).ids for path in (site / "api").glob("*.html")))
    for name, module in zoo._MODULES.items():
        assert f"{module}.{name}" in ids, f"docs/api has no entry of {module}.{name}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_a_file_of_the_root_lead_to_files(name):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not urllib.parse.urlsplit(link).scheme and not (ROOT / link).exists()]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert not [page for page in pages if not re.search(rf"[ :-] {re.escape(page)}$", navigation, re.MULTILINE)]
    assert pathlib.Path(ROOT / "docs" / "index.md").exists()
