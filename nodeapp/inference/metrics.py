"""What the inference process counts; names follow llama-server's where it has one."""

from __future__ import annotations

from nodeapp.service.metrics import Metrics


class InferenceMetrics:
    """prometheus-client objects are thread safe: the decode thread writes them directly."""

    def __init__(self, metrics: Metrics) -> None:
        self.prompt_tokens = metrics.counter("prompt_tokens_total", "prompt tokens accepted")
        self.cached_tokens = metrics.counter(
            "prompt_tokens_cached_total", "prompt tokens taken from the prefix cache"
        )
        self.produced_tokens = metrics.counter(
            "tokens_predicted_total", "tokens chosen, delivered or not"
        )
        self.delivered_tokens = metrics.counter(
            "tokens_delivered_total", "tokens handed to readers"
        )
        self.drafted_tokens = metrics.counter(
            "draft_tokens_total", "tokens guessed by prompt lookup and put into a batch"
        )
        self.accepted_tokens = metrics.counter(
            "draft_tokens_accepted_total", "guesses that were right"
        )
        self.row_cost = metrics.gauge(
            "batch_row_cost_ratio", "time a further row adds to a batch, by that of a single row"
        )
        self.steps = metrics.counter("decode_steps_total", "llama_decode calls")
        self.rows = metrics.counter("decode_rows_total", "tokens computed, prefill included")
        self.finished = metrics.counter("requests_finished_total", "by reason", ("reason",))
        self.running = metrics.gauge("requests_processing", "requests that hold a sequence")
        self.waiting = metrics.gauge("requests_deferred", "requests waiting for a sequence")
        self.kv_tokens = metrics.gauge("kv_tokens", "KV cells reserved or cached")
        self.first_token = metrics.histogram(
            "time_to_first_token_seconds", "from acceptance to the first token chosen"
        )
        self.step_seconds = metrics.histogram("decode_step_seconds", "wall time of a step")
