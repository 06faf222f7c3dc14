"""Files of settings: YAML as DVC reads it."""

import re
from typing import Any

import yaml


class MixedKeys(ValueError):
    """A section has keys that DVC cannot sort, and would stumble over after a stage has run."""


class SettingsLoader(yaml.SafeLoader):
    """Reads 2e-05 as a number, as DVC does, which itself writes small numbers so.

    A key is a text as it is written: a class may be called 7, or no. One that is given twice is a
    mistake: the first value would be lost without a word.
    """

    # Of a copy: `yaml.SafeLoader` is everyone's. YAML 1.1 has on, off, yes and no for true and
    # false; DVC reads YAML 1.2, where they are texts.
    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the dictionary of a section.

        Raises:
            ConstructorError: A key is given twice.
            MixedKeys: Some keys of a section in it are texts for DVC, and others not.
        """
        seen = set()
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode):
                _refuse_mixed_keys(str(key.value), value)
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
                key.tag = "tag:yaml.org,2002:str"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}
_NO_TEXTS = _NUMBERS | {f"tag:yaml.org,2002:{kind}" for kind in ("null", "timestamp")}


def _refuse_mixed_keys(name: str, section: yaml.MappingNode) -> None:
    # Of what is written without quotes, DVC takes some for numbers, dates or nothing. It sorts the
    # keys of a section: texts alone can be sorted, or numbers alone.
    keys = {key.value: key.tag for key, _ in section.value if isinstance(key, yaml.ScalarNode)}
    others = [key for key, tag in keys.items() if tag in _NO_TEXTS]
    if not others or all(tag in _NUMBERS for tag in keys.values()):
        return
    raise MixedKeys(
        f"{name}: got the keys {', '.join([*keys][:8])}, of which {others[0]} is no text for DVC; "
        f"takes all texts or all numbers: write '{others[0]}' in quotes"
    )


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
