"""The params of a study as text: every key with its meaning, and a mark where it differs from the default."""

from __future__ import annotations

import yaml

from specdec_lib.config import StudyParams


def explained(params: StudyParams) -> str:
    """A YAML file that holds every key; as a params file it gives the same study."""
    lines = [f"# All keys of {params.gpu}. A line with <- differs from the default."]
    for key, field in StudyParams.model_fields.items():
        value = getattr(params, key)
        same = field.is_required() or value == field.default
        lines += [
            f"# {field.description}",
            f"{key}: {_yaml(value)}{'' if same else f'  # <- default: {_yaml(field.default)}'}",
        ]
    return "\n".join(lines)


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()
