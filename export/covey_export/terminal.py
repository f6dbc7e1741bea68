"""The export with a progress bar and without other people's noise."""

from pathlib import Path

from tqdm import tqdm

from covey_export.place import check_place
from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_shared.bundle import Bundle


def export_with_progress(recipe: Recipe, out: Path, *, force: bool) -> Bundle:
    """Run the export; the bar is on stderr, and only on a terminal."""
    check_place(out, force)  # before the libraries load, which takes seconds
    with quiet():  # the imports too: peft's are the loudest
        from covey_export.bundle import export, stages

        with tqdm(total=stages(recipe), disable=None, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}") as bar:
            begun = 0

            def step(name: str) -> None:
                nonlocal begun
                bar.update(1 if begun else 0)
                bar.set_description(f"{name:<24.24}")
                begun += 1

            bundle = export(recipe, out, force=force, step=step)
            bar.update(1)
            bar.set_description(f"{'done':<24}")
    return bundle
