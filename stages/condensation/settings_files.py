"""Files of settings: YAML as DVC reads it."""

import re
from typing import Any

import yaml


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
        """
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
                key.tag = "tag:yaml.org,2002:str"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
