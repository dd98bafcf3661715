"""Stress a running server and check every answer; takes minutes, so it is not part of the test suite.

python -m serve --bundle BUNDLE --port 8000 --request-timeout-ms 1000
python tests/support/stress_server.py soak --url URL --bundle BUNDLE --texts rows.parquet --seconds 600
python tests/support/stress_server.py overload --url URL --bundle BUNDLE --texts rows.parquet --seconds 60

`soak`: random lengths and protocols, 5 % malformed, 5 % disconnects, 1 % oversized, 2 % long texts to /tokenize and
/v1/explain; each text's scores are known, so that a swapped answer is noticed. `overload`: four times the request rate
that the server can handle. Exit status 1 if any promise is broken.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd

from serve import Predictor

TOLERANCE = 2e-3
"""Tolerance of a score: float32 sums depend slightly on the shape of the batch."""
NUM_TEXTS = 400
MAX_LONG_CHARS = 100_000
"""The server's default limit for a text."""


class Stress:
    """A client that sends requests and checks the answers."""

    def __init__(self, url: str, session: aiohttp.ClientSession, known: dict[str, dict[str, float]], seed: int) -> None:
        self.url, self.session, self.known = url, session, known
        self.texts = list(known)
        self.random = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.latencies_s: dict[int, list[float]] = {}
        self.model = ""
        self.may_be_late = False
        """Whether accepted requests may time out; percentiles are checked instead."""

    async def post(self, path: str, body: Any, kind: str, timeout_s: float | None = None) -> tuple[int, Any]:
        began = time.perf_counter()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.post(self.url + path, data=data, timeout=timeout) as answer:
            content = await answer.json(content_type=None)
        self.statuses[f"{kind} {answer.status}"] += 1
        self.latencies_s.setdefault(answer.status, []).append(time.perf_counter() - began)
        if answer.status >= 500 and not (answer.status == 504 and self.may_be_late):
            self.wrong.append(f"{kind}: status {answer.status} {content}")
        return answer.status, content

    def check(self, text: str, scores: dict[str, float]) -> None:
        expected = self.known[text]
        if any(abs(scores[label] - score) > TOLERANCE for label, score in expected.items()):
            self.wrong.append(f"not the answer to {text[:40]!r}: {scores}, expected {expected}")

    async def classify(self) -> None:
        """Send valid texts by a random protocol and check the answers."""
        texts = [self.random.choice(self.texts) for _ in range(self.random.choice((1, 1, 1, 2, 8)))]
        protocol = self.random.choice(("native", "tei", "huggingface", "infinity", "open_inference"))
        bodies: dict[str, tuple[str, Any]] = {
            "native": ("/v1/classify", {"inputs": texts}),
            "tei": ("/predict", {"inputs": [[text] for text in texts]}),
            "huggingface": ("/", {"inputs": texts}),
            "infinity": ("/classify", {"input": texts}),
            "open_inference": (
                f"/v2/models/{self.model}/infer",
                {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]},
            ),
        }
        path, body = bodies[protocol]
        status, content = await self.post(path, body, "good")
        if status == 429:
            return
        if status != 200:
            self.wrong.append(f"{protocol}: status {status} {content}")
            return
        if protocol == "open_inference":
            scores = np.array(content["outputs"][2]["data"]).reshape(len(texts), -1)
            rows = [dict(zip(self.known[texts[0]], row, strict=True)) for row in scores.tolist()]
        else:
            ranked = {"native": "results", "infinity": "data"}
            lists = content[ranked[protocol]] if protocol in ranked else content
            lists = [each["scores"] for each in lists] if protocol == "native" else lists
            rows = [{each["label"]: each["score"] for each in row} for row in lists]
        for text, row in zip(texts, rows, strict=True):
            self.check(text, row)

    async def look_into(self) -> None:
        """Send a long text to /tokenize or /v1/explain, which must not delay the other routes."""
        num_chars = self.random.choice((2_000, 20_000, MAX_LONG_CHARS))
        text = " ".join(self.random.choices(self.texts, k=1 + num_chars // 20))[:num_chars]
        path, body = self.random.choice([("/tokenize", {"inputs": text}), ("/v1/explain", {"text": text})])
        status, content = await self.post(path, body, f"long {path}")
        if status not in (200, 429):
            self.wrong.append(f"{path}: status {status} {content}")

    async def client(self, end: float) -> None:
        """Send one request after another, some of them invalid, until the end."""
        while time.monotonic() < end:
            dice = self.random.random()
            if dice < 0.05:
                status, _ = await self.post(
                    "/predict", self.random.choice([b"{", b"{}", b'{"inputs": []}']), "malformed"
                )
                if status != 422:
                    self.wrong.append(f"malformed: status {status}")
            elif dice < 0.10:
                try:
                    await self.post("/predict", {"inputs": self.random.choice(self.texts)}, "hanging up", 0.002)
                except TimeoutError:
                    self.statuses["hung up"] += 1
            elif dice < 0.11:
                status, _ = await self.post("/predict", {"inputs": "x" * 3_000_000}, "oversized")
                if status != 413:
                    self.wrong.append(f"oversized: status {status}")
            elif dice < 0.13:
                await self.look_into()
            else:
                await self.classify()

    async def resident_mib(self) -> float:
        async with self.session.get(f"{self.url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    return float(line.split()[1]) / 2**20
        raise RuntimeError("no process_resident_memory_bytes in /metrics")

    async def watch_memory(self, seconds: float, every_s: float) -> list[float]:
        samples = []
        for _ in range(int(seconds / every_s)):
            await asyncio.sleep(every_s)
            samples.append(round(await self.resident_mib(), 1))
        return samples


async def soak(stress: Stress, seconds: float, clients: int) -> dict[str, Any]:
    """Run random clients, and watch the server's memory."""
    end = time.monotonic() + seconds
    memory, *_ = await asyncio.gather(
        stress.watch_memory(seconds, seconds / 20), *(stress.client(end) for _ in range(clients))
    )
    settled = max(1, round(20 * min(60, seconds / 4) / seconds))  # after the first minute, or quarter
    growth = (
        float(np.median(memory[-5:]) / np.median(memory[settled : settled + 5])) - 1
    )  # medians, as single samples vary
    if growth > 0.05:
        stress.wrong.append(f"memory grew by {growth:.1%}")
    return {"resident_mib": memory, "growth_after_settling": round(growth, 4)}


async def overload(stress: Stress, seconds: float, clients: int, deadline_s: float) -> dict[str, Any]:
    """Measure the server's capacity, then send four times as much."""

    async def one() -> None:
        text = stress.random.choice(stress.texts)
        status, content = await stress.post("/predict", {"inputs": text}, "good")
        if status == 200:
            stress.check(text, {each["label"]: each["score"] for each in content})

    async def closed_loop(end: float) -> None:
        while time.monotonic() < end:
            await one()

    began = time.monotonic()
    await asyncio.gather(*(closed_loop(began + 8) for _ in range(clients)))
    capacity = stress.statuses["good 200"] / (time.monotonic() - began)
    calm_ms = 1e3 * float(np.median([await _timed(one) for _ in range(50)]))
    memory_before = await stress.resident_mib()
    stress.statuses.clear()
    stress.latencies_s.clear()
    stress.may_be_late = True
    tasks: set[asyncio.Task[None]] = set()
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while sent < 4 * capacity * passed:
            tasks.add(asyncio.create_task(one()))
            sent += 1
        tasks = {task for task in tasks if not task.done()}
        await asyncio.sleep(0.005)
    sending_s = time.monotonic() - began
    await asyncio.wait_for(asyncio.gather(*tasks), timeout=deadline_s + 10)
    answered, refused = stress.latencies_s.get(200, []), stress.latencies_s.get(429, [])
    accepted = answered + stress.latencies_s.get(504, [])
    await asyncio.sleep(2.0)
    after_ms = 1e3 * float(np.median([await _timed(one) for _ in range(50)]))
    p99_s = float(np.percentile(accepted, 99))
    if p99_s > 1.2 * deadline_s:
        stress.wrong.append(f"accepted requests: p99 {p99_s:.2f} s, deadline {deadline_s} s")
    return {
        "capacity_rps": round(capacity, 1),
        "sent_rps": round(sent / sending_s, 1),
        "answered_rps": round(len(answered) / sending_s, 1),
        "accepted_p50_ms": round(1e3 * float(np.median(accepted)), 1),
        "accepted_p99_ms": round(1e3 * p99_s, 1),
        "refused_p50_ms": round(1e3 * float(np.median(refused)), 1) if refused else None,
        "refused_p99_ms": round(1e3 * float(np.percentile(refused, 99)), 1) if refused else None,
        "alone_before_ms": round(calm_ms, 2),
        "alone_2s_after_ms": round(after_ms, 2),
        "resident_mib": [round(memory_before, 1), round(await stress.resident_mib(), 1)],
    }


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def known_scores(bundle: Path, texts: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return texts of very different lengths, with the bundle's scores of each."""
    rows = pd.read_parquet(texts)["text"].tolist()
    generator = random.Random(seed)
    chosen = [" ".join(generator.sample(rows, generator.choice((1, 1, 1, 1, 2, 5)))) for _ in range(NUM_TEXTS)]
    with Predictor(bundle, device="cpu") as predictor:
        return {text: dict(each.scores) for text, each in zip(chosen, predictor(chosen), strict=True)}


async def run(arguments: argparse.Namespace) -> int:
    known = known_scores(arguments.bundle, arguments.texts, arguments.seed)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        stress = Stress(arguments.url, session, known, arguments.seed)
        async with session.get(f"{arguments.url}/v1/model") as answer:
            stress.model = (await answer.json())["name"]
        if arguments.what == "soak":
            report = await soak(stress, arguments.seconds, arguments.clients)
        else:
            report = await overload(stress, arguments.seconds, arguments.clients, arguments.deadline_s)
    report |= {"statuses": dict(stress.statuses.most_common()), "wrong": len(stress.wrong), "first": stress.wrong[:5]}
    print(json.dumps(report))
    return 1 if stress.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stress a running server and check every answer.")
    parser.add_argument("what", choices=["soak", "overload"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--deadline_s", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(run(parser.parse_args())))
