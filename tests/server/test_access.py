"""Who comes in: codes, keys, names, nonces, replays, revocation; over a real socket against a real database."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server import access
from covey_server.nonces import WINDOW, Nonces
from covey_server.refusals import Refused
from covey_shared import keys
from covey_shared.cli import main
from covey_shared.messages import CheckIn, Enroll, Enrolled, Hello, Receipt, Refusal
from covey_shared.signing import sign_request
from tests.helpers_server import (
    LAYOUT,
    MSGPACK,
    NONCES,
    Answer,
    Served,
    call,
    code_of,
    enroll,
    key_of,
    send,
    served,
    signature,
    signed_head,
    status_of,
    write_task,
)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Served]:
    """A server that wants codes."""
    with served(write_task(tmp_path), is_open=False) as server:
        yield server


def codes(server: Served, count: int = 1, ttl_s: float = 3600.0, name: str = "") -> list[str]:
    return server.aggregator.run.db.run(access.add_codes, count, ttl_s, name, time.time())


def nonce_of(url: str) -> str:
    return Hello.from_bytes(send(url, "GET", "/v1/hello").body).nonce


def signed(
    url: str, key: keys.PrivateKey, method: str, path: str, body: bytes = b"", nonce: str = "", **changes: str
) -> Answer:
    """A request signed by any key, with headers changed afterwards."""
    headers = {**(MSGPACK if body else {}), **sign_request(key, method, path, body, nonce or nonce_of(url)), **changes}
    return send(url, method, path, body or None, headers)


def enroll_key(url: str, key: keys.PrivateKey, wish: str, code: str = "") -> Answer:
    return signed(url, key, "POST", "/v1/enroll", Enroll(client=wish, code=code).to_bytes())


def rows(server: Served, table: str) -> list[tuple[object, ...]]:
    return server.aggregator.run.db.run(lambda db: db.execute(f"SELECT * FROM {table}").fetchall())


@pytest.mark.parametrize("algorithm", keys.ALGORITHMS)
def test_a_code_enrolls_one_key_and_the_answer_may_be_asked_for_again(closed: Served, algorithm: str) -> None:
    (code,) = codes(closed)
    key = keys.generate(algorithm)
    typed = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    for sent in (typed, code, ""):  # the first answer is lost, say; later the device starts again
        answer = enroll_key(closed.url, key, "kitchen", sent)
        assert Enrolled.from_bytes(answer.body).client == "kitchen"
    assert signed(closed.url, key, "GET", "/v1/task").status == 200
    thief = enroll_key(closed.url, keys.generate(algorithm), "hall", code)
    assert (thief.status, code_of(thief.body)) == (403, "bad_code")
    assert len(rows(closed, "devices")) == 1


def test_what_does_not_enroll_changes_nothing(closed: Served) -> None:
    (expired,), (good,) = codes(closed, ttl_s=-1.0), codes(closed)
    before = rows(closed, "codes"), rows(closed, "devices")
    key = keys.generate()
    for code, refusal in (("", "unknown_device"), (expired, "bad_code"), ("AAAA-AAAA-AAAA-AAAA-AAAA", "bad_code")):
        assert code_of(enroll_key(closed.url, key, "kitchen", code).body) == refusal
    body = Enroll(client="kitchen", code=good).to_bytes()
    forged = sign_request(keys.generate(), "POST", "/v1/enroll", body, nonce_of(closed.url))
    other = sign_request(key, "POST", "/v1/enroll", body, nonce_of(closed.url))
    mixed = {**MSGPACK, **forged, "Signature-Input": other["Signature-Input"]}
    assert code_of(send(closed.url, "POST", "/v1/enroll", body, mixed).body) == "bad_signature"
    assert (rows(closed, "codes"), rows(closed, "devices")) == before
    assert enroll_key(closed.url, key, "kitchen", good).status == 200, "the code is still good"


def test_a_name_belongs_to_one_key_and_a_code_may_fix_it(closed: Served) -> None:
    first, second = codes(closed, 2)
    (fixed,) = codes(closed, name="hall")
    assert enroll_key(closed.url, keys.generate(), "kitchen", first).status == 200
    answer = enroll_key(closed.url, keys.generate(), "kitchen", second)
    assert (answer.status, code_of(answer.body)) == (409, "name_taken")
    assert enroll_key(closed.url, keys.generate(), "attic", second).status == 200, "the code was not used up"
    assert Enrolled.from_bytes(enroll_key(closed.url, keys.generate(), "x", fixed).body).client == "hall"


def test_one_code_under_a_race_enrolls_one_device(closed: Served) -> None:
    (code,) = codes(closed)
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(enroll_key(closed.url, keys.generate(), f"d{i}", code)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.status for a in answers) == [200] + [403] * 7


def test_codes_and_tokens_are_kept_as_hashes_alone(closed: Served, tmp_path: Path) -> None:
    made = codes(closed, 3)
    token = closed.aggregator.run.db.run(access.add_token, "operator", "ann", 60.0, time.time())
    data = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    for secret in (*made, *(access.plain_code(code) for code in made), token, token.rpartition("_")[2]):
        assert secret.encode() not in data
    assert len({c for code in made for c in code} - set(access.ALPHABET) - {"-"}) == 0
    assert all(re.fullmatch("([0-9A-Z]{4}-){4}[0-9A-Z]{4}", code) for code in made)


def task_request(server: Served, who: str = "a") -> dict[str, str]:
    """Headers that are good once for GET /v1/task."""
    call(server.url, "GET", "/v1/task", who=who)
    return signature(server.url, who, "GET", "/v1/task", b"")


def test_a_request_is_good_once(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        headers = task_request(server)
        assert send(server.url, "GET", "/v1/task", headers=headers).status == 200
        again = send(server.url, "GET", "/v1/task", headers=headers)
        assert (again.status, code_of(again.body)) == (401, "stale_nonce")
        assert "Covey-Nonce" in again.headers, "an honest device signs again at once"


def test_a_request_that_was_held_back_is_stale(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        held = task_request(server)
        later = sign_request(key_of("a"), "GET", "/v1/task", b"", nonce_of(server.url))
        assert send(server.url, "GET", "/v1/task", headers=later).status == 200
        assert code_of(send(server.url, "GET", "/v1/task", headers=held).body) == "stale_nonce"


def test_nothing_of_an_earlier_start_of_the_server_is_taken(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with served(task) as server:
        headers = task_request(server)
    with served(task) as server:
        assert code_of(send(server.url, "GET", "/v1/task", headers=headers).body) == "stale_nonce"
        assert call(server.url, "GET", "/v1/task", who="a").status == 200


def test_a_changed_request_is_refused(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        url, key = server.url, key_of("a")
        server.device("a").task()
        message = CheckIn(client="a", layout=LAYOUT.digest, held=-1, examples=9, runtime="onnx").to_bytes()
        other = CheckIn(client="a", layout=LAYOUT.digest, held=-1, examples=99, runtime="onnx").to_bytes()
        offer = "/v1/checkin"
        cases = [
            ("another body", "POST", offer, other, sign_request(key, "POST", offer, message, nonce_of(url))),
            ("no body", "POST", offer, b"", sign_request(key, "POST", offer, message, nonce_of(url))),
            ("another path", "GET", "/v1/bundle", b"", sign_request(key, "GET", "/v1/task", b"", nonce_of(url))),
            ("another query", "GET", "/v1/adapter/0?held=0", b"",
             sign_request(key, "GET", "/v1/adapter/0?held=-1", b"", nonce_of(url))),
            ("another method", "GET", "/v1/task", b"", sign_request(key, "POST", "/v1/task", b"", nonce_of(url))),
            ("a nonce of our own", "GET", "/v1/task", b"", sign_request(key, "GET", "/v1/task", b"", "A" * 32)),
        ]  # fmt: skip
        for what, method, path, body, headers in cases:
            answer = send(url, method, path, body, {**MSGPACK, **headers})
            assert answer.status == 401, what
            assert code_of(answer.body) in ("bad_signature", "stale_nonce"), what
        assert status_of(url)["round"]["assigned"] == []


def test_a_device_cannot_speak_for_another(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        url = server.url
        a, b = server.device("a"), server.device("b")
        a.fetch(0, server.start)
        body, path = a.update(a.task(), a.check_in()), "/v1/updates/1/a"
        b.task()
        offer = CheckIn(client="a", layout=LAYOUT.digest, held=-1, examples=9, runtime="x").to_bytes()
        for method, target, sent in (
            ("PUT", path, body),
            ("PUT", "/v1/evaluations/0/a", body),
            ("POST", "/v1/checkin", offer),
        ):
            answer = send(url, method, target, sent, {**MSGPACK, **signature(url, "b", method, target, sent)})
            assert (answer.status, code_of(answer.body)) == (403, "wrong_device"), target
        signed_by_a = signature(url, "a", "PUT", path, body)
        as_b = signed_by_a["Signature-Input"].replace(key_of("a").public.text, key_of("b").public.text)
        answer = send(url, "PUT", path, body, {**MSGPACK, **signed_by_a, "Signature-Input": as_b})
        assert (answer.status, code_of(answer.body)) == (401, "bad_signature")
        assert status_of(url)["round"]["accepted"] == []
        assert Receipt.from_bytes(a.upload(1, body).body).status == "accepted"


def test_a_retry_is_signed_again_and_answered_from_the_row(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a = server.device("a")
        a.fetch(0, server.start)
        body = a.update(a.task(), a.check_in())
        first, second = (a.upload(1, body) for _ in range(2))
        assert [Receipt.from_bytes(x.body).status for x in (first, second)] == ["accepted", "duplicate"]


def test_revoking_takes_effect_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a = server.device("a")
        a.fetch(0, server.start)
        body = a.update(a.task(), a.check_in())
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(signed_head(server.url, "PUT", "/v1/updates/1/a", body) + body[:20])
            time.sleep(0.2)
            assert main(["enroll", "revoke", "a", str(tmp_path / "run")]) == 0
            slow.sendall(body[20:])
            answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"revoked" in answer
        assert rows(server, "updates") == []
        assert status_of(server.url)["round"]["accepted"] == []
        refused = call(server.url, "GET", "/v1/task", who="a")
        assert (refused.status, code_of(refused.body)) == (403, "revoked")
        assert code_of(enroll(server.url, "a").body) == "revoked", "nor does it come in again under its key"


def test_two_devices_with_one_key_are_one_device(tmp_path: Path) -> None:
    """A copied state folder: one update counts, the other is a conflict; both go on, and nothing counts twice."""
    with served(write_task(tmp_path, target=2, rounds=2)) as server:
        one, copy = server.device("twin"), server.device("twin")
        for device in (one, copy):
            device.fetch(0, server.start)
        task, assignment = one.task(), one.check_in()
        assert copy.check_in().action == "train", "the same assignment"
        assert one.upload(1, one.update(task, assignment)).status == 200
        other = copy.upload(1, copy.update(task, assignment, examples=10))
        assert (other.status, code_of(other.body)) == (409, "conflict")
        NONCES.clear()
        assert copy.check_in().action == "wait"
        assert status_of(server.url)["round"]["accepted"] == ["twin"]


def stand_still(server: Served) -> None:
    """No budget grows while a slow machine sends its requests."""
    now_s = time.monotonic()
    server.door.clock = lambda: now_s


def test_requests_beyond_the_rate_are_told_when_to_come_back(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        stand_still(server)
        answers = [send(server.url, "GET", "/v1/hello") for _ in range(130)]
        refused = [a for a in answers if a.status == 429]
        assert refused
        refusal = Refusal.from_bytes(refused[0].body)
        assert refusal.code == "slow_down"
        assert 0 < refusal.retry_after_s <= 1
        assert int(refused[0].headers["Retry-After"]) == 1


def test_strangers_who_fail_are_slowed_down_and_devices_are_not(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        call(server.url, "GET", "/v1/task", who="a")
        headers = signature(server.url, "a", "GET", "/v1/task", b"")
        stand_still(server)
        statuses = [send(server.url, "GET", "/v1/task").status for _ in range(130)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        assert send(server.url, "GET", "/v1/task", headers=headers).status == 200, "a device signs for itself"


# Nonces by themselves.


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_nonces_age_and_leave_the_window() -> None:
    clock = Clock()
    nonces = Nonces(clock, window=64)
    old = nonces.issue()
    for _ in range(64):
        nonces.issue()
    with pytest.raises(Refused):
        nonces.spend(old)
    nonces = Nonces(clock)
    early = nonces.issue()
    clock.now_s = 3000.0
    middle = nonces.issue()
    clock.now_s = 3700.0
    with pytest.raises(Refused):
        nonces.spend(early)
    nonces.spend(middle)
    assert len(nonces._used) == WINDOW // 8


@given(st.lists(st.integers(0, 20), max_size=60))
def test_a_nonce_is_spent_at_most_once_whatever_the_order(order: list[int]) -> None:
    nonces = Nonces(Clock(), window=64)
    issued = [nonces.issue() for _ in range(21)]
    spent: set[int] = set()
    for i in order:
        if i in spent:
            with pytest.raises(Refused):
                nonces.spend(issued[i])
        else:
            assert nonces.spend(issued[i]) == i
            spent.add(i)


@given(st.text(max_size=64) | st.binary(max_size=40).map(lambda b: b.hex()))
def test_what_we_did_not_give_out_is_no_nonce(text: str) -> None:
    nonces = Nonces(Clock(), window=64)
    nonces.issue()
    with pytest.raises(Refused):
        nonces.spend(text)


def test_nonces_of_a_device_must_rise() -> None:
    nonces = Nonces(Clock())
    nonces.in_order("a", 5)
    nonces.in_order("b", 3)
    for number in (5, 4):
        with pytest.raises(Refused):
            nonces.in_order("a", number)


def test_devices_of_one_label_weigh_together_no_more_than_their_share(tmp_path: Path) -> None:
    """Two devices of one giver of codes state a thousand examples each, a third of another giver ten: halves."""
    text = (
        '[defence]\nissuer_share = 0.5\n[upload]\ncodec = "dense"\n[download]\ncodec = "dense"\n'
        "[client]\nerror_feedback = false\n"
    )
    stated = {"a": 1000, "b": 1000, "c": 10}
    with served(write_task(tmp_path, text, target=3, rounds=1), is_open=False) as server:
        run = server.aggregator.run
        for name in stated:
            label = "other" if name == "c" else "festival"
            code = run.db.run(access.add_codes, 1, 3600.0, name, time.time(), label)[0]
            assert enroll(server.url, name, code).status == 200
        devices = {name: server.device(name) for name in stated}
        start = run.bundle.start(7)
        for name, device in devices.items():
            assignment = device.check_in()
            device.fetch(assignment.version, start)
            answer = device.upload(assignment.round, device.update(device.task(), assignment, examples=stated[name]))
            assert answer.status == 200, answer
        server.wait_for_version(1)
        a, b, c = (devices[name].change(1).astype(float) for name in "abc")
        np.testing.assert_allclose(server.aggregator.server.view - start, (a / 2 + b / 2 + c) / 2, rtol=1e-4, atol=1e-6)
