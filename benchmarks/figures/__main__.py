"""Write every table and every plot anew: ``python -m benchmarks.figures``."""

from __future__ import annotations

from benchmarks import step
from benchmarks.figures.claims import CLAIMS, missing
from benchmarks.figures.pages import PAGES, REPO, rendered
from benchmarks.figures.results import RESULTS, load
from benchmarks.gpu.page import write_pages
from benchmarks.ordinal_vs_scalar import shown
from benchmarks.pretrained import report


def plots() -> None:
    """The pictures beside the JSON."""
    shown.plot(load("ordinal_vs_scalar"), str(RESULTS / "ordinal_vs_scalar.png"))
    step.plot(load("step_cpu"), str(RESULTS / "step_cpu.png"))
    report.plot(load("pretrained"), str(REPO / "docs" / "images" / "pretrained.png"))


def main() -> None:
    """Say which pages changed, and which sentences no longer say what their JSON does."""
    plots()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(REPO)}: written")
    write_pages(RESULTS / "gpu")
    for claim in CLAIMS:
        if words := missing(claim):
            print(f"{claim.page}: by hand, please: {words}")


if __name__ == "__main__":
    main()
