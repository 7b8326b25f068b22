"""Training on this machine: LoRA on a Llama, in a process of its own. Knows a run directory and nothing of the gateway.

prepare.py    a GGUF file → a prepared base folder (no torch)
__main__.py   the process: lock, signals, exit status (no torch before the first event)
job.py        one run directory: facts → events, resume points, checkpoints, result
loop.py       the training loop; start reading here
methods.py    one function per training method
batches.py    examples → tree batches
model.py      tree batch → hidden states → log-probabilities
lora.py       the adapter and its files
resume.py     resume points; folders that appear whole or not at all
journal.py    events.jsonl
"""
