"""Jobs of all kinds except embedding, with a token in every private field."""

from __future__ import annotations

import datetime as dt
import io
import os
import signal
import time
from typing import Any

from PIL import PngImagePlugin

from tests.page_files import drawn, pdf, scanned_page, text_page
from tests.privacy.scenario import SOURCE, Scenario
from vestry import (
    UPSTREAM,
    Classification,
    Flow,
    Generation,
    Grounding,
    Label,
    Message,
    Ocr,
    Rerank,
)
from workers.stack.background import BackgroundStack

SECOND_BEST = "second-best"
"""A task whose intended model is on an unreachable server; see `CATALOGUE`."""
CATALOGUE = {
    "backends": """
  - {name: gone, runtime: openai_http, locality: local, url: "http://127.0.0.1:9/v1"}""",
    "models": f"""
  - {{name: intended, backend: gone, kinds: [generation, classification], tasks: [{SECOND_BEST}]}}""",
    "tasks": f"""
  - {{name: {SECOND_BEST}, kinds: [generation, classification]}}""",
}
"""Entries put first in the shipped catalogue, by section."""
FAULTS = ("bad-request", "raise", "unavailable", "refused")


def catalogue(shipped: str) -> str:
    """The catalogue with an unreachable local server, and without models in the worker."""
    for section, entries in CATALOGUE.items():
        shipped = shipped.replace(f"\n{section}:", f"\n{section}:{entries}", 1)
    # No real model is loaded for a job that echo cannot serve.
    runtime = "runtime: sentence_transformers_local,"
    return shipped.replace(runtime, f"{runtime} enabled: false,")


def enqueue(scenario: Scenario) -> None:
    """Enqueue jobs of each kind that succeed, fail in each way, are cancelled, or are degraded."""
    for kind in (classification, rerank, generation):
        _all_ends(scenario, kind)
    _files(scenario)


def classification(scenario: Scenario, name: str, fault: str = "") -> Classification:
    text, token = scenario.text, scenario.token
    labels = [
        Label(token(f"{name}, label"), text(f"{name}, description"), [text(f"{name}, example")]),
        Label(token(f"{name}, other label")),
    ]
    return Classification(text(f"{name}, text", fault), labels)


def rerank(scenario: Scenario, name: str, fault: str = "") -> Rerank:
    text = scenario.text
    return Rerank(text(f"{name}, query", fault), [text(f"{name}, passage"), text(f"{name}, other")])


def generation(scenario: Scenario, name: str, fault: str = "", **options: Any) -> Generation:
    text, token = scenario.text, scenario.token
    messages = [
        Message("system", text(f"{name}, system")),
        Message("user", text(f"{name}, earlier")),
        Message("assistant", text(f"{name}, answer")),
        Message("user", text(f"{name}, message", fault)),
    ]
    return Generation(messages=messages, stop=[token(f"{name}, stop")], max_tokens=60, **options)


def grounded(scenario: Scenario) -> None:
    """Enqueue a grounded answer; documents must be indexed."""
    job = generation(
        scenario, "grounded",
        grounding=Grounding(scenario.text("grounding query"), own_sources=[SOURCE]),
    )  # fmt: skip
    scenario.submit("grounded", job, "succeeded", task=SECOND_BEST)


def kill_a_reader(scenario: Scenario, up: BackgroundStack) -> None:
    """Kill a worker during OCR; its successor finishes the job."""
    pages = [scanned_page(drawn(scenario.token(f"scan {n}"), *["filler"] * 12)) for n in range(3)]
    job = scenario.submit("killed", Ocr(pdf(*pages)), "succeeded", latency="bulk")
    scenario.wait_running(job)
    time.sleep(0.3)  # until OCR begins, which is not observable from outside
    pid = up.pid(f"{scenario.privacy}-bulk-cpu")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _all_ends(scenario: Scenario, kind: Any) -> None:
    name = kind.__name__
    key = scenario.token(f"{name}, idempotency key")
    scenario.submit(name, kind(scenario, name), "succeeded", idempotency_key=key)
    scenario.submit(
        f"{name} in bulk", kind(scenario, f"{name} in bulk"), "succeeded", latency="bulk"
    )
    if scenario.privacy != "private":
        return  # only the local echo backend has faults
    for fault in FAULTS:
        about = f"{name} {fault}"
        scenario.submit(about, kind(scenario, about, f"echo!{fault}"), "dead", max_attempts=2)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)
    about = f"{name}, out of time"
    scenario.submit(about, kind(scenario, about, "echo!sleep=8"), "expired", deadline=later,
                    latency="bulk")  # fmt: skip
    about = f"{name}, cancelled"
    job = scenario.submit(
        about, kind(scenario, about, "echo!sleep=15"), "cancelled", latency="bulk"
    )
    scenario.running.append(job)
    if kind is not rerank:
        about = f"{name}, degraded"
        scenario.submit(about, kind(scenario, about), "succeeded", task=SECOND_BEST)


def _files(scenario: Scenario) -> None:
    token = scenario.token
    page = text_page(f"In a PDF, {token('PDF')}", token("PDF, second line"))
    scenario.submit("PDF", Ocr(pdf(page)), "succeeded",
                    idempotency_key=token("PDF, idempotency key"))  # fmt: skip
    scenario.submit(
        "scan", Ocr(pdf(scanned_page(drawn(token("scan"))))), "succeeded", latency="bulk"
    )
    scenario.submit("PNG", Ocr(_png(scenario)), "succeeded", latency="bulk")
    broken = pdf(text_page(token("broken PDF")))[:-200].replace(b"endobj", b"endobx")
    scenario.submit("broken PDF", Ocr(broken), "dead", max_attempts=1, latency="bulk")
    scenario.submit("broken PNG", Ocr(_png(scenario)[:300]), "dead", max_attempts=1, latency="bulk")
    if scenario.privacy == "private":
        flow = Flow(
            Ocr(pdf(text_page(token("flow, PDF")))),
            then=[Classification(UPSTREAM, [token("flow, label"), token("flow, other label")]),
                  Generation(prompt=UPSTREAM, system=scenario.text("flow, system"))],
        )  # fmt: skip
        scenario.submit("flow", flow, "succeeded")


def _png(scenario: Scenario) -> bytes:
    """An image with words, and with words in its metadata."""
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text(scenario.token("PNG, field"), scenario.token("PNG, text"))
    info.add_text("Comment", scenario.token("PNG, compressed"), zip=True)
    drawn(scenario.token("PNG")).save(out, "PNG", pnginfo=info)
    return out.getvalue()
