"""Pictures of the app's screen without Android: the layout, texts, colours and shapes of the resources as a web page.

    python android_demo/check/screens.py FOLDER        needs Chromium

A rendering of the view tree, not a screenshot: sizes in dp, weights, margins, styles, light and dark colours and both
languages come from the resource files; text is laid out by a browser's fonts. Enough to see what is ugly.
"""

import html
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RES = Path(__file__).parent.parent / "app" / "src" / "main" / "res"
A = "{http://schemas.android.com/apk/res/android}"
WIDTH, HEIGHT = 400, 860  # dp of a usual phone

Values = dict[str, str]


def values(*files: str) -> Values:
    """Names and texts of value files, later ones over earlier ones."""
    found: Values = {}
    for file in files:
        for item in ET.parse(RES / file).getroot():
            found[item.get("name", "")] = (item.text or "").replace("\\'", "'")
    return found


def styles() -> dict[str, Values]:
    """Styles with what they inherit by their dotted names."""
    own = {
        s.get("name", ""): {i.get("name", ""): i.text or "" for i in s}
        for s in ET.parse(RES / "values/styles.xml").getroot()
    }
    return {name: {**own.get(name.rpartition(".")[0], {}), **items} for name, items in own.items()}


class Screen:
    """One state of the screen: texts by view id, and views that are hidden."""

    def __init__(self, night: bool, language: str, texts: Mapping[str, str], hidden: set[str], losses: list[float]):
        self.strings = values("values/strings.xml", *([f"values-{language}/strings.xml"] if language else []))
        self.colors = values("values/colors.xml", *(["values-night/colors.xml"] if night else []))
        self.styles, self.texts, self.hidden, self.losses = styles(), texts, hidden, losses
        self.calm = {"sentence"} if "curve" in hidden else {"nothing"}  # a question is no warning

    def color(self, value: str) -> str:
        """A colour reference as CSS."""
        return "#" + self.colors[value.removeprefix("@color/")][3:]

    def text(self, value: str) -> str:
        """A text or a reference to one; `%` arguments are given by the state."""
        return self.strings[value.removeprefix("@string/")] if value.startswith("@string/") else value

    def attributes(self, view: ET.Element) -> Values:
        """What a view has from its style and of its own."""
        style = self.styles.get((view.get("style") or "").removeprefix("@style/"), {})
        own = {k.removeprefix(A): v for k, v in view.attrib.items() if k.startswith(A)}
        return {**{k.removeprefix("android:"): v for k, v in style.items()}, **own}

    def shape(self, name: str) -> str:
        """A shape drawable as CSS."""
        root = ET.parse(RES / "drawable" / f"{name}.xml").getroot()
        parts = {e.tag: {k.removeprefix(A): v for k, v in e.attrib.items()} for e in root}
        return (
            f"background:{self.color(parts['solid']['color'])};border:1px solid {self.color(parts['stroke']['color'])};"
            f"border-radius:{dp(parts['corners']['radius'])};"
        )

    def css(self, view: ET.Element, given: Values) -> str:
        """Box and text of a view."""
        out = ["box-sizing:border-box;"]
        for name, rule in (("padding", "padding"), ("layout_marginTop", "margin-top"), ("minHeight", "min-height")):
            if name in given:
                out.append(f"{rule}:{dp(given[name])};")
        if given.get("layout_weight"):
            out.append(f"flex:{given['layout_weight']};")
        if given.get("layout_height", "").endswith("dp"):
            out.append(f"height:{dp(given['layout_height'])};")
        if "background" in given:
            out.append(self.shape(given["background"].removeprefix("@drawable/")))
        if given.get("id", "").endswith(tuple(self.calm)):
            given["textColor"] = "@color/ink"
        if "textColor" in given:
            out.append(f"color:{self.color(given['textColor'])};")
        if "textSize" in given:
            out.append(f"font-size:{dp(given['textSize'])};")
        if "medium" in given.get("fontFamily", "") or view.tag == "Button":
            out.append("font-weight:500;")
        return "".join(out)

    def render(self, view: ET.Element) -> str:
        """One view and what is in it."""
        given = self.attributes(view)
        name = given.get("id", "").removeprefix("@+id/")
        if name in self.hidden:
            return ""
        style = self.css(view, given)
        if view.tag in ("ScrollView", "LinearLayout"):
            direction = "row" if given.get("orientation") == "horizontal" else "column"
            inside = "".join(self.render(child) for child in view)
            return f"<div style='display:flex;flex-direction:{direction};{style}'>{inside}</div>"
        if view.tag == "ProgressBar":
            return (
                f"<div style='height:4px;margin-top:10px;background:{self.color('outline')}'>"
                f"<div style='height:4px;width:62%;background:{self.color('accent')}'></div></div>"
            )
        if view.tag.endswith("LossCurveView"):
            return f"<div style='{style}'>{self.curve(float(given['layout_height'][:-2]))}</div>"
        text = self.texts.get(name, self.text(given.get("text", "")))
        if view.tag == "EditText":
            lines = int(given.get("lines", "1"))
            style += f"min-height:{max(48, 24 + 21 * lines)}px;color:{self.color('ink_soft' if not text else 'ink')};"
            text = text or self.text(given.get("hint", ""))
        if view.tag == "Button":
            style += "display:flex;align-items:center;justify-content:center;"
        return f"<div style='line-height:1.35;{style}'>{html.escape(text) or '&nbsp;'}</div>"

    def curve(self, height: float) -> str:
        """What LossCurveView draws."""
        width, room, inset = WIDTH - 82.0, 19.0, 6.0
        bottom, soft, accent = height - 4, self.color("ink_soft"), self.color("accent")
        base = f"<line x1=0 y1={bottom} x2={width} y2={bottom} stroke='{self.color('outline')}'/>"
        if not self.losses:
            label = f"<text x=0 y={height / 2} fill='{soft}' font-size=13>{self.strings['curve_empty']}</text>"
            return f"<svg width={width} height={height}>{base}{label}</svg>"
        low, span = min(self.losses), max(max(self.losses) - min(self.losses), 1e-6)
        points = [
            (
                inset + (width - 2 * inset) * i / max(1, len(self.losses) - 1),
                room + (1 - (loss - low) / span) * (bottom - room - 2 * inset) + inset,
            )
            for i, loss in enumerate(self.losses)
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        last = points[-1]
        return (
            f"<svg width={width} height={height}>{base}<polyline points='{line}' fill=none stroke='{accent}' "
            f"stroke-width=3 stroke-linejoin=round stroke-linecap=round />"
            f"<circle cx={last[0]} cy={last[1]} r=5 fill='{accent}'/>"
            f"<text x=0 y={points[0][1] - 10} fill='{soft}' font-size=13>{self.losses[0]:.2f}</text>"
            f"<text x={width} y={last[1] - 10} text-anchor=end fill='{soft}' font-size=13>{self.losses[-1]:.2f}</text>"
            "</svg>"
        )

    def page(self) -> str:
        """The whole screen."""
        body = self.render(ET.parse(RES / "layout/main.xml").getroot())
        return (
            "<meta charset=utf-8><style>body{margin:0;font-family:Roboto,Inter,'Liberation Sans',sans-serif}"
            f"</style><body style='background:{self.color('background')};width:{WIDTH}px'>{body}"
        )


def dp(size: str) -> str:
    """dp and sp as pixels."""
    return size.removesuffix("dp").removesuffix("sp") + "px"


def states() -> dict[str, Screen]:
    """The states that are worth a look."""
    losses = [1.31, 1.22, 1.10, 1.04, 0.98, 0.95, 0.93, 0.925, 0.91, 0.905]
    task, idle = "notes · demo-1m", {"join_card", "progress", "progress_text", "recovery_line"}
    unmeasured = idle | {"curve", "numbers"}
    english = values("values/strings.xml")
    german = values("values/strings.xml", "values-de/strings.xml")
    training = {
        "task": task, "phase": english["phase_training"], "progress_text": "Round 10 of 16, step 12 of 20",
        "loss": "0.905", "loss_change": "-30.9 %", "updates": "9", "bytes_today": "1.4 MB",
        "main_action": english["pause"],
    }  # fmt: skip
    asking = {
        "task": task, "phase": english["phase_asking"],
        "sentence": "demo-1m has to be downloaded: 6.3 MB. Training it takes about 14 MB of memory; 2.1 GB are free.",
        "main_action": english["asking_yes"],
    }  # fmt: skip
    problem = {
        **training, "phase": german["phase_problem"], "loss": "1.040", "loss_change": "-20.6 %", "updates": "3",
        "main_action": german["retry"],
        "sentence": german["error_unreachable"].replace("%1$s", "https://covey.example.org"),
    }  # fmt: skip
    recovery = english["recovery_line"].replace("%1$s", "K7QF9-RTA4M-WXZ2P-C8HNB")
    return {
        "join": Screen(False, "", {}, {"task_card"}, []),
        "asking": Screen(False, "", asking, unmeasured, []),
        "training": Screen(False, "", {**training, "recovery_line": recovery}, {"join_card", "sentence"}, losses),
        "training-night": Screen(True, "", training, {"join_card", "sentence", "recovery_line"}, losses),
        "problem-de-night": Screen(True, "de", problem, idle, losses[:4]),
        "join-de": Screen(False, "de", {}, {"task_card"}, []),
    }


def main() -> None:
    """Write a page and a picture of each state."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, screen in states().items():
        page, picture = folder / f"{name}.html", folder / f"{name}.png"
        page.write_text(screen.page())
        options: list[Any] = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        subprocess.run(
            ["chromium", *options, f"--window-size={WIDTH},{HEIGHT}", "--force-device-scale-factor=1",
             f"--screenshot={picture}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
        print(picture)


if __name__ == "__main__":
    main()
