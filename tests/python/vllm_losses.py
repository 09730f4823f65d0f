"""The mean loss, in nats a token, that vLLM computes for rows of tokens with a model in a folder.

usage: vllm_losses.py FOLDER TOKENS.json          prints one JSON line

vLLM's CPU build has no kernel for packed weights on processors without AVX-512. There the weights are unpacked after vLLM has
read, merged and placed them, and multiplied by the tensor library; everything else is vLLM's.
"""
import json
import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                  VLLM_LOGGING_LEVEL="WARNING")
import torch  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel  # noqa: E402
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32  # noqa: E402


def unpack(kernel, layer):
    if kernel.config.zero_points:
        sys.exit("vllm_losses: only symmetric weights can be unpacked here")
    packed, scale = getattr(layer, kernel.w_q_name), getattr(layer, kernel.w_s_name)
    codes = unpack_quantized_values_into_int32(
        (packed.data if packed.input_dim == 1 else packed.data.t()).contiguous(), kernel.config.weight_type, 1)
    scales = scale.data if scale.output_dim == 0 else scale.data.t()
    middle = 1 << (kernel.config.weight_type.size_bits - 1)
    group_size = codes.shape[1] // scales.shape[1]
    layer.unpacked = ((codes - middle) * scales.float().repeat_interleave(group_size, 1)).to(scales.dtype)


def use_unpacked_weights():
    CPUWNA16LinearKernel.process_weights_after_loading = unpack
    CPUWNA16LinearKernel.apply_weights = lambda kernel, layer, x, bias=None: torch.nn.functional.linear(x, layer.unpacked, bias)


def main():
    folder, rows = sys.argv[1], json.load(open(sys.argv[2]))
    has_kernel = hasattr(torch.ops._C, "cpu_gemm_wna16")
    if not has_kernel:
        use_unpacked_weights()
    llm = LLM(model=folder, dtype="bfloat16", max_model_len=512, enforce_eager=True)
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows],
                           SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    losses = [-found[token].logprob for output, row in zip(outputs, rows)
              for found, token in zip(output.prompt_logprobs[1:], row[1:])]
    print(json.dumps({"loss": sum(losses) / len(losses), "tokens": len(losses), "kernel": has_kernel}))


if __name__ == "__main__":
    main()
