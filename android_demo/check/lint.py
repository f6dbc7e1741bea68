"""What Android's lint would say of the resources, as far as the files alone tell: no Android tools are needed.

python android_demo/check/lint.py

Every text is translated with the same placeholders, used, and no text stands in a layout; every field has a label for a
screen reader; every button and field is at least 48 dp high; dark colours are names that the light ones have. Every
error that :core can tell a person has a sentence in each language.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

MAIN = Path(__file__).parent.parent / "app" / "src" / "main"
RES = MAIN / "res"
A = "{http://schemas.android.com/apk/res/android}"
PLACEHOLDER = re.compile(r"%(?:\d\$)?[-+,.0-9]*[a-z]|%%")
TOUCH_DP = 48


def named(file: str) -> dict[str, str]:
    """The entries of a value file."""
    return {e.get("name", ""): e.text or "" for e in ET.parse(RES / file).getroot() if isinstance(e.tag, str)}


def translations() -> Iterator[str]:
    """Texts that one language lacks, or that take other arguments there."""
    base = named("values/strings.xml")
    for folder in sorted(RES.glob("values-*")):
        if not (folder / "strings.xml").is_file():
            continue
        other = named(f"{folder.name}/strings.xml")
        yield from (f"{folder.name} lacks {name}" for name in base.keys() - other.keys())
        yield from (f"{folder.name} has {name}, which nothing else has" for name in other.keys() - base.keys())
        for name in base.keys() & other.keys():
            if sorted(PLACEHOLDER.findall(base[name])) != sorted(PLACEHOLDER.findall(other[name])):
                yield f"{folder.name}: {name} has other placeholders"


def unused() -> Iterator[str]:
    """Texts and colours that nothing refers to."""
    files = [*MAIN.rglob("*.kt"), *MAIN.rglob("*.xml")]
    everything = "\n".join(f.read_text() for f in files)
    for kind, file in (("string", "values/strings.xml"), ("color", "values/colors.xml")):
        for name in named(file):
            if not re.search(rf"(@{kind}/|R\.{kind}\.){name}\b", everything):
                yield f"the {kind} {name} is not used"


def errors() -> Iterator[str]:
    """Reasons of :core and refusals of the protocol without a sentence, and sentences without either."""
    source = (MAIN.parents[2] / "core/src/main/kotlin/covey/core/Errors.kt").read_text()
    listed = re.search(r"enum class Reason \{(.*?)\n\}", source, re.DOTALL)
    reasons = set(
        re.findall(r"\b[A-Z][A-Z_]+\b", re.sub(r"/\*\*.*?\*/", "", listed[1] if listed else "", flags=re.DOTALL))
    )
    told = (MAIN / "kotlin/covey/app/Sentences.kt").read_text()
    codes = set(re.findall(r"^\| \d{3} \| `(\w+)`", (MAIN.parents[3] / "docs/protocol.md").read_text(), re.MULTILINE))
    for language in ("values", "values-de"):
        texts = named(f"{language}/strings.xml")
        yield from (
            f"{language} has no error_{r.lower()}" for r in reasons - {"REFUSED"} if f"error_{r.lower()}" not in texts
        )
    yield from (f"Sentences.kt does not know {r}" for r in reasons if f"Reason.{r} ->" not in told)
    yield from (
        f"the protocol has no refusal {c}" for c in set(re.findall(r'"(\w+)" to R.string.refused', told)) - codes
    )


def layouts() -> Iterator[str]:
    """Texts in layouts, fields without labels, and what is too small to touch."""
    styles = {
        s.get("name", ""): {i.get("name", ""): i.text or "" for i in s}
        for s in ET.parse(RES / "values/styles.xml").getroot()
    }
    for view in ET.parse(RES / "layout/main.xml").getroot().iter():
        own = {f"android:{k.removeprefix(A)}": v for k, v in view.attrib.items() if k.startswith(A)}
        style = (view.get("style") or "").removeprefix("@style/")
        given = {**styles.get(style.rpartition(".")[0], {}), **styles.get(style, {}), **own}
        name = given.get("android:id", view.tag)
        for attribute in ("android:text", "android:hint", "android:contentDescription"):
            if not given.get(attribute, "@").startswith("@"):
                yield f"{name}: {attribute} is not in the resources"
        if view.tag == "EditText" and "android:contentDescription" not in given:
            yield f"{name} has no label for a screen reader"
        height = given.get("android:minHeight", "0dp").removesuffix("dp")
        if view.tag in ("Button", "EditText") and float(height) < TOUCH_DP:
            yield f"{name} is lower than {TOUCH_DP} dp"


def night() -> Iterator[str]:
    """Dark colours without a light one."""
    light, dark = named("values/colors.xml"), named("values-night/colors.xml")
    yield from (f"values-night has the colour {name} alone" for name in dark.keys() - light.keys())


def main() -> int:
    """Print what is wrong."""
    wrong = [*translations(), *unused(), *errors(), *layouts(), *night()]
    for sentence in wrong:
        print(f"lint: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
