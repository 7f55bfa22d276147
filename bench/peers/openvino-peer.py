"""Serves the benchmark's requests with OpenVINO GenAI: one JSON line in, one out. Arguments: model, threads."""
import json
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
print(json.dumps({"ready": True, "name": "OpenVINO GenAI " + openvino_genai.get_version(),
                  "details": "4-bit weights as the GGUF has them, its own default KV cache and compute types; "
                             "requests of different lengths are called for one length after another"}), flush=True)
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
