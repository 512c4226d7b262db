"""Fine-tune on the course's questions with LoRA, on as many processes as `accelerate launch` starts.

    accelerate launch --multi_gpu --num_processes 2 train_with_accelerate.py

One process a GPU; on a machine without one they share the CPU, in spite of the option's name. Each takes its
own share of every batch, so `--batch-size` counts the samples of one process.
"""
import argparse
import json

from accelerate import PartialState

import course_lib as cl

parser = argparse.ArgumentParser()
parser.add_argument("--model", default=None, help="a name for cl.load; by default the profile's")
parser.add_argument("--lang", default="ko")
parser.add_argument("--batch-size", type=int, default=2)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--output", default=None, help="a folder for the adapter")
options = parser.parse_args()

cl.runtime.quiet()
on_cpu = cl.profile().device == "cpu"  # there in fp32 throughout: exact enough to compare runs
model, tokenizer = cl.load(options.model or cl.profile().model, "fp32" if on_cpu else "bf16")
rows = cl.load_qa(options.lang).shuffle(seed=0)  # an order that does not depend on the number of processes
result = cl.finetune(
    model, tokenizer, rows, batch_size=options.batch_size, max_steps=options.steps, learning_rate=1e-3,
    output_dir=options.output, bf16=not on_cpu, train_sampling_strategy="sequential", disable_tqdm=True)
if PartialState().is_main_process:
    print(json.dumps({"processes": PartialState().num_processes, "losses": result.losses}))
