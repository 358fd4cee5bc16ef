"""Build the committed artefacts of circuit ledger-240: a developer's tool, needs onnx.

    python -m nodeapp.prover.circuits.build_ledger OUTPUT_DIRECTORY

EZKL writes a time stamp and the order of hash maps into both files, and one of those orders even
decides the keys. tests/proofs compares what the files mean; the committed ones are
the circuit: never calibrate or rebuild in production.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nodeapp.core.ledger_proof import CONTEXT_LIMBS, IDS_PER_CHUNK, VECTOR_LENGTH
from nodeapp.prover.library import ezkl
from nodeapp.wire.proof_profile import ProfileName

VISIBILITY: dict[ProfileName, tuple[str, int]] = {
    "poseidon": ("hashed", 14),
    "kzg": ("polycommit", 12),
}
"""How the input is committed to, and log2 of the rows."""
DECOMPOSITION_BASE, DECOMPOSITION_LEGS = 128, 3
"""21 bits: every vocabulary and every 16-bit limb; the default base forces 2^15 rows or more."""


def ledger_model() -> onnx.ModelProto:
    """ONNX graph: [1, 256] numbers in, [count of non-zero ids, 8 context limbs] out."""

    def constant(name: str, values: list[int]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, dtype=np.int64), name)

    constants = [
        constant("start", [0]),
        constant("ids_end", [IDS_PER_CHUNK]),
        constant("context_end", [IDS_PER_CHUNK + CONTEXT_LIMBS]),
        constant("axis", [1]),
        numpy_helper.from_array(np.zeros((1, 1), np.float32), "pad"),
    ]
    nodes = [
        helper.make_node("Slice", ["vector", "start", "ids_end", "axis"], ["ids"]),
        helper.make_node("Slice", ["vector", "ids_end", "context_end", "axis"], ["context"]),
        helper.make_node("Equal", ["ids", "pad"], ["is_pad"]),
        helper.make_node("Not", ["is_pad"], ["is_token"]),
        helper.make_node("Cast", ["is_token"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=1),
        helper.make_node("Concat", ["count", "context"], ["statement"], axis=1),
    ]
    shown = helper.make_tensor_value_info("statement", TensorProto.FLOAT, [1, 1 + CONTEXT_LIMBS])
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, VECTOR_LENGTH])
    graph = helper.make_graph(nodes, "ledger_240", [vector], [shown], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def build(profile: ProfileName, directory: Path) -> None:
    """Write settings.json and circuit.compiled of one profile into `directory`."""
    visibility, logrows = VISIBILITY[profile]
    arguments = ezkl.PyRunArgs()
    arguments.input_visibility = visibility
    arguments.output_visibility = "public"
    arguments.param_visibility = "fixed"
    arguments.input_scale = 0
    arguments.param_scale = 0
    arguments.logrows = logrows
    arguments.decomp_base, arguments.decomp_legs = DECOMPOSITION_BASE, DECOMPOSITION_LEGS
    directory.mkdir(parents=True, exist_ok=True)
    settings, circuit = directory / "settings.json", directory / "circuit.compiled"
    with tempfile.NamedTemporaryFile(suffix=".onnx") as model:
        onnx.save(ledger_model(), model.name)
        ezkl.gen_settings(model.name, str(settings), py_run_args=arguments)
        ezkl.compile_circuit(model.name, str(circuit), str(settings))


if __name__ == "__main__":
    for name in VISIBILITY:
        build(name, Path(sys.argv[1]) / name)
