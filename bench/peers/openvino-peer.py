"""Serves the benchmark's requests with OpenVINO GenAI: one JSON line in, one out. Arguments: model, threads."""
import json
import os
import re
import subprocess
import sys
import time

import openvino_genai

model, threads = sys.argv[1], int(sys.argv[2])
scheduler = openvino_genai.SchedulerConfig()
scheduler.cache_size = 3
scheduler.max_num_batched_tokens = 2048
scheduler.max_num_seqs = 64
scheduler.enable_prefix_caching = True
pipeline = openvino_genai.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)
if "--load-only" in sys.argv:
    sys.exit()


def compiled_for():
    """Properties of the compiled language model, name to value: printed while loading, in a process that logs."""
    command = [sys.executable, *sys.argv, "--load-only"]
    run = subprocess.run(command, env={**os.environ, "OPENVINO_LOG_LEVEL": "2"}, capture_output=True, text=True)
    section = re.search(r"^Model: LLM.*\n((?:  .*\n)+)", run.stdout, re.MULTILINE)
    if section is None:
        raise RuntimeError(f"the library does not print what it compiled for: {run.stdout}{run.stderr}")
    return dict(re.findall(r"^  (\w+): (.*)$", section[1], re.MULTILINE))


properties = compiled_for()
group = properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"]
print(json.dumps({
    "ready": True,
    "name": "OpenVINO GenAI",
    "details": f"{openvino_genai.get_version()}, {properties['INFERENCE_NUM_THREADS']} threads; 4-bit weights as the GGUF has "
               f"them, {properties['INFERENCE_PRECISION_HINT']}, activations of products quantized in groups of {group}, "
               f"{properties['KEY_CACHE_PRECISION']} keys and {properties['VALUE_CACHE_PRECISION']} values in the KV cache "
               "(what its CPU plugin says that it compiled for), prefix caching; requests of different lengths are called for "
               "one length after another",
}), flush=True)
for line in sys.stdin:
    items = json.loads(line)
    configs = []
    for item in items:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = item["maxTokens"]
        config.ignore_eos = True
        config.apply_chat_template = False
        configs.append(config)
    start = time.perf_counter()
    if len({item["maxTokens"] for item in items}) == 1:
        pipeline.generate([item["prompt"] for item in items], configs[0])
    else:
        # One call has one length; the longest is asked for in groups so that no engine does work another is spared.
        groups = {}
        for item, config in zip(items, configs):
            groups.setdefault(item["maxTokens"], (config, []))[1].append(item["prompt"])
        for config, prompts in groups.values():
            pipeline.generate(prompts, config)
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
