"""Completion of commands, groups, options and keys for bash, and for zsh through its bashcompinit."""

import os
from collections.abc import Iterable, Mapping

from uqbench.errors import ConfigError

SCRIPT = """\
_uqbench() {
    local IFS=$'\\n'
    local line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($(COMP_LINE="$line" COMP_WORDBREAKS="$COMP_WORDBREAKS" uqbench --complete 2> /dev/null))
}
complete -o nospace -o default -F _uqbench uqbench
"""


def main(argv: list[str], commands: Mapping[str, str]) -> int:
    """Print the completion script, or the candidates for the line that the shell is editing."""
    if argv[0] == "--completion":
        if argv[1:] not in (["bash"], ["zsh"]):
            raise ConfigError('--completion: name a shell, bash or zsh; usage: eval "$(uqbench --completion bash)"')
        print(SCRIPT, end="")
        return 0
    line = os.environ.get("COMP_LINE", "")
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    # Readline replaces only what follows the last word break, so `uq=en` is completed to `ensemble`.
    keep = max((word.rfind(mark) + 1 for mark in "=:@" if mark in os.environ.get("COMP_WORDBREAKS", "")), default=0)
    for candidate in sorted(candidates(words, word, commands)):
        print(candidate[keep:])
    return 0


def candidates(words: list[str], word: str, commands: Iterable[str]) -> list[str]:
    """What `word`, after the given words, may become; empty where only file names make sense."""
    if not words:
        first = [f"{name} " for name in commands] + ["--help ", "--version ", "--completion "]
        return [text for text in first if text.startswith(word)]
    if words[0] not in commands:
        return []
    if word.startswith("-"):
        flags = ["--help ", "--multirun ", "--cfg ", "--config-dir ", "--resolve ", "--package ", "--info "]
        return [text for text in flags if text.startswith(word)]
    if words[-1] in ("--cfg", "--info", "--config-dir"):
        return {"--cfg": ["job ", "hydra ", "all "]}.get(words[-1], [])
    return [text for text in _settings(words[0], words[1:], word) if text.startswith(word)]


def _settings(command: str, words: list[str], word: str) -> list[str]:
    from uqbench.cli.hydra_session import open_hydra
    from uqbench.cli.overrides import Request
    from uqbench.config import flatten

    config_dir = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    with open_hydra(command, config_dir) as hydra:
        request = Request(hydra.config_loader, command, [text for text in words if "=" in text], multirun=True)
        group = word.partition("=")[0]
        if group in request.groups and "=" in word:
            typed = word[: max(word.rfind("="), word.rfind(",")) + 1]  # in a sweep the last of several options
            return [f"{typed}{option}" for option in request.options(group)]
        config = request.preview()
    names = flatten(config)
    parents = {name.rpartition(".")[0] for name in names}
    keys = [f"{name}." if name in parents else f"{name}=" for name in names if not name.endswith("_target_")]
    deeper = word.count(".")
    return [f"{group}=" for group in request.groups] + [key for key in keys if key.rstrip(".").count(".") == deeper]
