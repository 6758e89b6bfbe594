"""Hydra's errors as one sentence each that says what to do."""

import difflib

from hydra.errors import MissingConfigException

from jaxq.harness.config import option_names


def hydra_sentence(error: Exception) -> str:
    """The sentence for an exception that Hydra, OmegaConf or jaxq raised while a configuration was composed."""
    text = _flat(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"there is no {group} {name!r}: choose one of {', '.join(error.options or [])}"
    if text.startswith("Could not override"):
        key = text.split("'")[1].lstrip("+~")
        return f"there is no option {key!r}: {suggestion(key)}"
    if text.startswith("Error merging override") and error.__cause__ is not None:
        return f"{text.removeprefix('Error merging override ')}: {_flat(error.__cause__).partition(' full_key')[0]}"
    if text.startswith("Ambiguous value for argument"):
        argument = text.split("'")[1]
        return f"{argument}: for a sweep over several values, begin with -m (--multirun); quote a value with a comma"
    return text or type(error).__name__


def suggestion(key: str) -> str:
    """The key to write in place of one that does not exist."""
    last = key.rpartition(".")[2]
    in_other_groups = [name for name in option_names() if last in (name, name.rpartition(".")[2])]
    closest = sorted(in_other_groups, key=lambda name: name.count("."))[:1] or difflib.get_close_matches(
        key, option_names(), n=1, cutoff=0.5
    )
    return f"did you mean {closest[0]!r}?" if closest else "--cfg job prints all options"


def _flat(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
