"""The checks, one row each, the most important first. A new check is a new row and its function."""

from __future__ import annotations

from proof import runtime_checks as runtime
from proof import training_checks as training
from proof import training_commands as commands
from proof.harness import Check

# cuBLAS computes the same bits each time only with a fixed workspace, which it reads when it starts.
FIXED_WORKSPACE = (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)

RUNTIME = (
    Check(
        "cuda_equals_cpu",
        "runtime",
        runtime.cuda_equals_cpu,
        "CUDA answers as the CPU does, fp32 and fp16",
        40,
        12,
    ),
    Check(
        "node_placement", "runtime", runtime.node_placement, "every node that computes runs on CUDA", 25, 5
    ),
    Check("cuda_graphs", "runtime", runtime.cuda_graphs, "CUDA graphs answer as plain runs do", 15, 5),
    Check(
        "latency_packaged",
        "runtime",
        runtime.latency_packaged,
        "latency by batch size, packaged network",
        15,
        10,
    ),
    Check(
        "latency_ensemble",
        "runtime",
        runtime.latency_ensemble,
        "latency by batch size, four networks",
        50,
        30,
    ),
    Check(
        "lifetimes", "runtime", runtime.lifetimes, "memory stays flat over threads and classifiers", 25, 15
    ),
    Check(
        "beside_torch", "runtime", runtime.beside_torch, "graphs are recorded while PyTorch allocates", 20, 15
    ),
)
TRAINING = (
    Check("device", "training", training.device, "this PyTorch has code for the GPU", 10, 10),
    Check("evaluation", "training", training.evaluation, "evaluation keeps cuDNN on, TF32 off", 12, 12),
    Check("host_waits", "training", training.host_waits, "no step makes the host wait for the GPU", 15, 5),
    Check(
        "networks", "training", training.networks, "every network trains; time, utilization, memory", 90, 40
    ),
    Check("precisions", "training", training.precisions, "fp32, bf16 and fp16 train alike", 15, 20),
    Check(
        "deterministic",
        "training",
        training.deterministic,
        "equal bits when repeated and when resumed",
        40,
        30,
        environment=FIXED_WORKSPACE,
    ),
    Check("two_ranks", "training", commands.two_ranks, "two processes share one GPU, or are refused", 60, 40),
    Check("small_maps", "training", training.small_maps, "SmallMapConv2d against plain convolution", 25, 15),
    Check("augmentation", "training", training.augmentation, "what augmentation costs", 5, 5),
    Check(
        "evaluation_memory",
        "training",
        training.evaluation_memory,
        "evaluation at 224 px stays small",
        15,
        10,
    ),
    Check("checkpoint", "training", training.checkpoint, "seconds to write a checkpoint", 12, 10),
    Check(
        "ladder", "training", commands.ladder, "the whole ladder, as far as time allows", 60, 45, fills=True
    ),
)
CHECKS = RUNTIME + TRAINING
