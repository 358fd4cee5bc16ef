"""What the inference process counts; names follow llama-server's where it has one."""

from __future__ import annotations

from nodeapp.inference.gpu import Gpu, Judgement
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
        self.parked_tokens = metrics.gauge(
            "parked_tokens", "tokens of prefixes that wait in the host's memory"
        )
        self.first_token = metrics.histogram(
            "time_to_first_token_seconds", "from acceptance to the first token chosen"
        )
        self.prompt_seconds = metrics.counter(
            "prompt_seconds_total", "from admission to the first token chosen"
        )
        self.produced_seconds = metrics.counter(
            "tokens_predicted_seconds_total", "from the first token chosen to the last"
        )
        self.request_seconds = metrics.histogram(
            "e2e_request_latency_seconds", "from acceptance to the end of an answer"
        )
        self.token_seconds = metrics.histogram(
            "time_per_output_token_seconds", "after the first, mean of each answer"
        )
        self.kv_usage = metrics.gauge("kv_cache_usage_ratio", "kv_tokens of all there are, 0 to 1")
        self.busy_sequences = metrics.counter(
            "busy_sequences_total", "sequences computed; by decode_steps_total: busy a step"
        )
        self.step_seconds = metrics.histogram("decode_step_seconds", "wall time of a step")

    def answered(self, now: float, *, accepted_at: float, first_at: float, tokens: int) -> None:
        """An answer of so many chosen tokens ended; monotonic seconds, `first_at` 0 for none."""
        self.request_seconds.observe(now - accepted_at)
        if tokens > 1:
            self.produced_seconds.inc(now - first_at)
            self.token_seconds.observe((now - first_at) / (tokens - 1))


class EmbeddingMetrics:
    """Of the embedding model."""

    def __init__(self, metrics: Metrics) -> None:
        self.tokens = metrics.counter("embedded_tokens_total", "tokens read to embed")
        self.vectors = metrics.counter("embeddings_total", "vectors made")


class GpuMetrics:
    """What dashboards plot of every device; labels are bounded by the devices of the machine."""

    def __init__(self, metrics: Metrics) -> None:
        self._free = metrics.gauge("gpu_free_bytes", "free memory", ("gpu",))
        self._temperature = metrics.gauge("gpu_temperature_celsius", "of the chip", ("gpu",))
        self._power = metrics.gauge("gpu_power_watts", "drawn now", ("gpu",))
        self._share = metrics.gauge("gpu_speed_ratio", "1: full, 0: in quarantine", ("gpu",))

    def set(self, gpu: Gpu, judgement: Judgement) -> None:
        """Take over one reading."""
        label = str(gpu.index)
        self._free.labels(label).set(gpu.free_bytes)
        if gpu.temperature_celsius is not None:
            self._temperature.labels(label).set(gpu.temperature_celsius)
        if gpu.power_watts is not None:
            self._power.labels(label).set(gpu.power_watts)
        self._share.labels(label).set(judgement.share)
