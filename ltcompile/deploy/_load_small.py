import functools, json, safetensors, torch  # noqa: E401, I001


def load(model: torch.nn.Module, path: str) -> torch.nn.Module:  # `model` as its own code builds it, before it was pruned
    with safetensors.safe_open(path, "pt") as file:
        changes = {**json.loads(file.metadata()["changes"]), **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    for name, value in changes.items():
        owner, last = functools.reduce(getattr, name.split(".")[:-1], model), name.split(".")[-1]
        new = torch.nn.Sequential(*(getattr(torch.nn, kind)(**how) for kind, how in value["layers"])) if isinstance(value, dict) else value
        setattr(owner, last, torch.nn.Parameter(new) if isinstance(new, torch.Tensor) and last not in owner._buffers else new)
    return model.float().eval()
