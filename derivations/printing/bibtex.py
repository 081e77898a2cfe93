"""References as BibTeX entries, and as items of a bibliography."""

from __future__ import annotations

import re

from varprop.derivations.references import Reference

_VENUES = {
    "article": "journal",
    "inproceedings": "booktitle",
    "book": "publisher",
    "techreport": "institution",
    "misc": "howpublished",
}


def entry(work: Reference) -> str:
    """Return a work as a BibTeX entry."""
    fields = {
        "author": " and ".join(_authors(work)),
        "title": f"{{{work.title}}}",
        **_venue(work),
        "year": str(work.year),
        "pages": work.pages.replace("-", "--"),
        **_link(work.link),
    }
    rows = "".join(f"  {name} = {{{_accents(text)}}},\n" for name, text in fields.items() if text)
    return f"@{work.kind}{{{work.key},\n{rows}}}\n"


def item(work: Reference) -> str:
    """Return a work as a LaTeX item of a bibliography."""
    *others, last = _authors(work)
    authors = ", ".join(others) + (" et al." if last == "others" else f" and {last}" if others else last)
    pages = f", {work.pages.replace('-', '--')}" if work.pages else ""
    return rf"\bibitem{{{work.key}}} {authors}. \emph{{{work.title}}}. {work.venue}{pages}, {work.year}."


def _authors(work: Reference) -> list[str]:
    named = work.authors.removesuffix(" et al.")
    return named.split(", ") + ["others"] * (named != work.authors)


def _venue(work: Reference) -> dict[str, str]:
    volume = re.fullmatch(r"(.*) (\d+)", work.venue) if work.kind == "article" else None
    return {"journal": volume[1], "volume": volume[2]} if volume else {_VENUES[work.kind]: work.venue}


def _link(link: str) -> dict[str, str]:
    if not link:
        return {}
    if link.startswith("10."):
        return {"doi": link}
    return {"eprint": link, "archiveprefix": "arXiv"}


def _accents(text: str) -> str:
    return text.replace("ü", r"{\"u}")
