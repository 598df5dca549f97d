"""The other side of `peer.py`: times timm's models in an environment of their own (PyTorch, timm).

Reads one JSON object a line from standard input and answers each with one on standard output:

    {"prepare": KEY, "model": NAME, "form": "eager" | "compiled", "mode": "forward" | "train",
     "batch": B, "size": PIXELS, "dtype": "float32" | "bfloat16"}   -> {"params": N, "torch": VERSION, ...}
    {"run": KEY, "seconds": S}                                      -> {"calls": N, "seconds": T}
"""

import json
import sys
import time

import timm
import torch


def prepare(request, device):
    """(a call without arguments, the number of parameters)."""
    dtype = getattr(torch, request["dtype"])
    model = timm.create_model(request["model"], img_size=request["size"]).to(device)
    params = sum(p.numel() for p in model.parameters())
    images = torch.randn(request["batch"], 3, request["size"], request["size"], device=device)
    if request["mode"] == "forward":
        model = model.to(dtype).eval()
        images = images.to(dtype)
        program = torch.compile(model, mode="max-autotune") if request["form"] == "compiled" else model

        def call():
            with torch.inference_mode():
                return program(images)

        return call, params
    model.train()
    program = torch.compile(model, mode="max-autotune") if request["form"] == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    labels = torch.zeros(request["batch"], dtype=torch.long, device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(program(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step, params


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    calls = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            calls[request["prepare"]], params = prepare(request, device)
            for _ in range(2):
                calls[request["prepare"]]()
            wait()
            peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
            answer = {
                "params": params,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "memory_mb": peak,
            }
        else:
            count, start = 0, time.perf_counter()
            while not count or time.perf_counter() - start < request["seconds"]:
                calls[request["run"]]()
                wait()
                count += 1
            answer = {"calls": count, "seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
