"""MkDocs hook: the pictures and tables below ``experiments/`` become files of the site.

The experiments write them, so the site has no copies that could fall behind. ``PICTURES`` are copied as they are.
``TABLES`` are Markdown tables without a heading: each becomes a page with one.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

PICTURES = {
    "img/figure.svg": "experiments/bench/results/figure.svg",
    "img/bits.png": "experiments/bench/results/bits.png",
    "img/tokens.png": "experiments/bench/results/tokens.png",
    "img/memory.png": "experiments/large/results/memory.png",
    "img/scaling.png": "experiments/large/results/scaling.png",
}
"""Path in the site to path in the repository."""

TABLES = {
    "measured/all_smollm2.md": ("All rows on SmolLM2-135M", "experiments/bench/results/accuracy.md"),
    "measured/all_embedded.md": ("All rows on the embedded model", "experiments/bench/results/accuracy_embedded.md"),
    "measured/all_forms.md": ("Every form in every onnxruntime", "experiments/forms/results/table.md"),
}
"""Path in the site to title and path in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures and pages."""
    for target, source in PICTURES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for target, (title, source) in TABLES.items():
        text = f"# {title}\n\nFrom `{source}`.\n\n{(ROOT / source).read_text(encoding='utf-8')}"
        files.append(File.generated(config, target, content=text))
    return files
