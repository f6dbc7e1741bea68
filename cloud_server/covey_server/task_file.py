"""The task file: TOML in, one frozen dataclass out; its sections and their defaults are in `task_sections`.

A key that does not exist is refused with the nearest one that does, a value of the wrong type with the type that was
expected. Pure but for `read`. What this does not know: bundles, so a codec is checked against a layout elsewhere.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from covey_server.task_sections import (
    ASYNC_KEYS,
    FLASC_MODES,
    FLASC_PAPER_CLIENT,
    FUSIONS,
    MAX_TIERS,
    MODES,
    OPTIMIZERS,
    PRESETS,
    SINCE,
    SPARSE,
    STRATEGIES,
    STRATEGY_SERVER,
    SYNC_KEYS,
    WHOLE_ROUNDS,
    WHOLE_UPDATES,
    ClientSection,
    Codec,
    DefenceSection,
    Named,
    PersonalSection,
    RoundSection,
    TaskFile,
    TaskSection,
    Tier,
)
from covey_server.toml_checks import Defaults, Table, in_range, known, like, named, one_of, positive, typed
from covey_shared.errors import TaskFileError
from covey_shared.schema import Scalar

SECTIONS = ("task", "round", "strategy", "server", "upload", "download", "client", "defence", "personal")


def read(path: Path) -> TaskFile:
    """The task in a file; the bundle's path comes out absolute."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise TaskFileError(f"there is no task file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"the task file {path} cannot be read: {error}") from None
    try:
        parsed = parse(text)
    except TaskFileError as error:
        raise TaskFileError(f"{path}: {error}") from None
    bundle = str((path.parent / parsed.task.bundle).resolve())
    return dataclasses.replace(parsed, task=dataclasses.replace(parsed.task, bundle=bundle))


def parse(text: str) -> TaskFile:
    """The task in a TOML text."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a whole number of thousands of digits is a plain ValueError
        raise TaskFileError(f"not valid TOML: {error}") from None
    known("the task file", data, (*SECTIONS, "tier"), "section")
    tables = {name: _table(name, data.get(name, {})) for name in SECTIONS}
    _check_mode(tables["round"])
    strategy = _named_choice("strategy", tables["strategy"], "name", "fedavg", STRATEGIES)
    _check_whole_rounds(strategy, tables)
    _check_strategy(strategy, tables["upload"])
    return TaskFile(
        task=_section(TaskSection, "task", tables["task"]),
        round=_section(RoundSection, "round", tables["round"]),
        strategy=strategy,
        server=_server(tables["server"], strategy),
        upload=_codec("upload", tables["upload"], strategy, "density_up", "sign"),
        download=_codec("download", _but(tables["download"], "since"), strategy, "density_down", "levels"),
        client=_client(tables["client"], strategy),
        defence=_section(DefenceSection, "defence", tables["defence"]),
        personal=_section(PersonalSection, "personal", tables["personal"]),
        tiers=_tiers(data.get("tier", []), strategy),
        since=_since(tables["download"], strategy),
    )


def _check_mode(table: Table) -> None:
    """Refuses a key of the other mode: it would silently do nothing."""
    mode = table.get("mode", "sync")
    for other, keys in (("sync", SYNC_KEYS), ("async", ASYNC_KEYS)):
        found = [key for key in keys if key in table]
        if mode in MODES and mode != other and found:
            raise TaskFileError(f"[round] {found[0]} belongs to mode = {other!r}, this task has {mode!r}; remove it")


def _check_whole_rounds(strategy: Named, tables: dict[str, Table]) -> None:
    """Refuses what strategies of whole factors cannot be combined with."""
    if strategy.name not in WHOLE_ROUNDS:
        return
    if tables["round"].get("mode") == "async":
        raise TaskFileError(
            f"strategy {strategy.name!r} needs all updates of a version to start from the same one; use [round] mode "
            "'sync', or strategy 'fedavg' or 'ffa-lora'"
        )
    server = tables["server"]
    if strategy.name != "rolora" and (server.get("optimizer", "sgd") != "sgd" or server.get("learning_rate", 1.0) != 1):
        raise TaskFileError(
            f"strategy {strategy.name!r} says itself what the next adapter is; remove [server], or use 'fedavg'"
        )


def _tiers(tables: Any, strategy: Named) -> tuple[Tier, ...]:
    """The [[tier]] tables, each a codec as [upload] has it and a name."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TaskFileError("tiers are written [[tier]], each with a name and a codec")
    if len(tables) > MAX_TIERS:
        raise TaskFileError(f"the task has {len(tables)} tiers, at most {MAX_TIERS} are possible")
    tiers = tuple(_tier(table, strategy) for table in tables)
    names = [tier.name for tier in tiers]
    if len(set(names)) != len(names):
        raise TaskFileError(f"two tiers are called {next(n for n in names if names.count(n) > 1)!r}")
    return tiers


def _tier(table: Table, strategy: Named) -> Tier:
    name = table.get("name")
    if not isinstance(name, str) or "codec" not in table:
        raise TaskFileError("[[tier]] needs a name and a codec")
    where, codec = f"tier {named('[[tier]] name', name)}", _but(table, "name")
    _check_compared(strategy, f"[{where}]", codec)
    return Tier(name=name, codec=_codec_table(where, codec, "sign"))


def _since(table: Table, strategy: Named) -> str:
    """What stands in [download] beside its codec."""
    since = typed("[download] since", table.get("since", "version"), str)
    one_of("[download] since", since, SINCE)
    if since != "version" and is_paper(strategy):
        raise TaskFileError("[download] since means nothing with FLASC's paper mode, which sends weights; remove it")
    if since == "start" and any(name in ("segments", "segment", "adaptive") for name in _codec_names(table)):
        raise TaskFileError(
            "[download] since = 'start' sends each version whole, and this codec sends a segment of it; use 'levels', "
            "or since = 'version'"
        )
    return since


def _but(table: Table, key: str) -> Table:
    return {k: v for k, v in table.items() if k != key}


def _codec_names(table: Table) -> list[Any]:
    """The preset, or the stages, that a section names."""
    stages = table.get("codec")
    return [s.get("name") for s in stages if isinstance(s, dict)] if isinstance(stages, list) else [stages]


def is_paper(strategy: Named) -> bool:
    """FLASC exactly as its paper has it."""
    return strategy.name == "flasc" and strategy.args["mode"] == "paper"


def _server(table: Table, strategy: Named) -> Named:
    default = STRATEGY_SERVER.get(strategy.name, "sgd")
    choice = _named_choice("server", table, "optimizer", default, OPTIMIZERS)
    for key, value in choice.args.items():
        if key in ("learning_rate", "eps"):
            positive(f"[server] {key}", float(value))
        else:
            in_range(f"[server] {key}", float(value), 0.0, 1 - 1e-9)
    return choice


def _client(table: Table, strategy: Named) -> ClientSection:
    client = _section(ClientSection, "client", {**(FLASC_PAPER_CLIENT if is_paper(strategy) else {}), **table})
    client.config()
    if is_paper(strategy) and client.error_feedback:
        raise TaskFileError("[client] error_feedback must be false with FLASC's paper mode, whose devices keep nothing")
    return client


def _check_strategy(strategy: Named, upload: Table) -> None:
    if "attackers" in strategy.args:
        in_range("[strategy] attackers", float(strategy.args["attackers"]), 0.0, 0.499)
    _check_compared(strategy, "[upload]", upload)
    if strategy.name == "cohorts":
        in_range("[strategy] count", int(strategy.args["count"]), 1, 64)
        in_range("[strategy] every", int(strategy.args["every"]), 1, 1_000_000)
        in_range("[strategy] margin", float(strategy.args["margin"]), 0.0, 2.0)
        in_range("[strategy] smallest", int(strategy.args["smallest"]), 1, 1_000_000)
    if strategy.name == "fdlora":
        one_of("[strategy] fusion", str(strategy.args["fusion"]), FUSIONS)
        in_range("[strategy] sync_every", int(strategy.args["sync_every"]), 1, 1_000_000)
    if strategy.name == "flasc":
        one_of("[strategy] mode", str(strategy.args["mode"]), FLASC_MODES)
        for key in ("density_up", "density_down"):
            value = float(strategy.args[key])
            if not 0 < value <= 1:
                raise TaskFileError(f"[strategy] {key} must be above 0 and at most 1, got {value}")


def _check_compared(strategy: Named, where: str, table: Table) -> None:
    """Refuses a sparse codec where updates are compared."""
    sparse = next((name for name in _codec_names(table) if name in SPARSE), None)
    if strategy.name in WHOLE_UPDATES and sparse:
        raise TaskFileError(
            f"strategy {strategy.name!r} compares updates coordinate by coordinate, and {where} codec {sparse!r} lets "
            "each device send others; use 'sign', 'levels' or 'dense', or strategy 'trimmed-mean'"
        )


def _codec(section: str, table: Table, strategy: Named, density: str, default: str) -> Codec:
    """One of [upload] and [download]."""
    if strategy.name == "flasc":
        if table:
            raise TaskFileError(
                f"[{section}] cannot stand beside strategy 'flasc', whose {density} sets the codec; remove [{section}] "
                "or use strategy 'fedavg'"
            )
        return _flasc_codec(strategy, float(strategy.args[density]))
    return _codec_table(section, table, default)


def _codec_table(section: str, table: Table, default: str) -> Codec:
    """A preset by name with its arguments, or a list of stages."""
    codec = table.get("codec", default)
    if isinstance(codec, list):
        known(f"[{section}]", table, ("codec",))
        return tuple(_stage(f"[{section}] codec, stage {i + 1}", stage) for i, stage in enumerate(codec))
    return _named_choice(section, table, "codec", default, PRESETS)


def _flasc_codec(strategy: Named, density: float) -> Codec:
    """Top-k and exact values as the paper sends them, or, in covey mode, values to a tenth of their norm."""
    values: dict[str, Scalar] = {"values": "f32"} if is_paper(strategy) else {"values": "auto", "error": 0.1}
    stages = [] if density == 1 else [Named(name="topk", args={"density": density})]
    return (*stages, Named(name="pack", args=values))


def _stage(where: str, table: Any) -> Named:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise TaskFileError(f"{where} must be a table with a name, such as {{name = 'topk', density = 0.1}}")
    args = {key: value for key, value in table.items() if key != "name"}
    for key, value in args.items():
        if not isinstance(value, bool | int | float | str):
            raise TaskFileError(f"{where}: {key} must be a number, a text or true/false, got {value!r}")
    return Named(name=named(where, table["name"]), args=args)


def _named_choice(section: str, table: Table, key: str, default: str, choices: Defaults) -> Named:
    """A table whose `key` names one of `choices` and whose other keys are that choice's arguments."""
    name = typed(f"[{section}] {key}", table.get(key, default), str)
    one_of(f"[{section}] {key}", name, choices)
    defaults = choices[name]
    known(f"[{section}] with {key} = {name!r}", table, (key, *defaults))
    args = {arg: like(f"[{section}] {arg}", table.get(arg, value), value) for arg, value in defaults.items()}
    return Named(name=name, args=args)


S = TypeVar("S")


def _section(cls: type[S], name: str, table: Table) -> S:
    """A dataclass of scalars from a table, each value of its field's type."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known(f"[{name}]", table, fields)
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in table:
            raise TaskFileError(f"[{name}] lacks {field.name}")
    kinds = {key: field.type if isinstance(field.type, type) else str for key, field in fields.items()}
    return cls(**{key: typed(f"[{name}] {key}", value, kinds[key]) for key, value in table.items()})


def _table(name: str, value: Any) -> Table:
    if not isinstance(value, dict):
        raise TaskFileError(f"{name} must be a section, written [{name}], got {value!r}")
    return value
