"""A chat template that renders an encoder's own prompt: readers know no other way to write one."""

from __future__ import annotations

from string import Template

__all__ = ["chat_template"]

# Messages hold their parts in any order: pictures are counted and texts collected before anything is printed.
# A prompt, such as a task's instruction, comes as a system message and belongs right before the text.
_TEMPLATE = Template("""\
{%- set ns = namespace(images=0, prompt='', text='', at=-1, first='') -%}
{%- for message in messages -%}
{%- set parts = message.content -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- for part in parts -%}
{%- if part.type == 'image' -%}{%- set ns.images = ns.images + 1 -%}
{%- elif message.role == 'system' -%}{%- set ns.prompt = ns.prompt + part.text -%}
{%- else -%}{%- set ns.text = ns.text + part.text -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- set ns.text = ns.prompt + ns.text -%}
{%- if '<|image_1|>' in ns.text -%}
{%- if not ns.images -%}
{{- raise_exception('the text has a place <|image_1|>, but there is no image') -}}
{%- endif -%}
{%- for i in range(1, ns.images + 1) -%}
{%- set place = '<|image_' ~ i ~ '|>' -%}
{%- set at = ns.text.find(place) -%}
{%- if at < ns.at or place not in ns.text -%}
{{- raise_exception('images must have their places <|image_1|>, <|image_2|>, ... in this order, or none') -}}
{%- endif -%}
{%- set ns.at = at -%}
{%- endfor -%}
{%- for i in range(1, ns.images + 1) -%}
{%- set ns.text = ns.text.replace('<|image_' ~ i ~ '|>', $image) -%}
{%- endfor -%}
{{- ns.text -}}
{%- else -%}
{%- for i in range(1, ns.images + 1) -%}
{{- ns.first ~ $image -}}
{%- set ns.first = ' ' -%}
{%- endfor -%}
{%- if ns.images and ns.text -%}{{- ' ' -}}{%- endif -%}
{{- ns.text -}}
{%- endif -%}
{{- $end -}}
""")


def chat_template(placeholder: str, end: str = "") -> str:
    """The Jinja template of the prompts that :class:`~fanoise_lightning.VisionLanguageEncoder` writes.

    Images come first, separated by spaces, then a space and the text; or they are where ``<|image_1|>``,
    ``<|image_2|>``, ... are in the text. A system message comes right before the text.

    Args:
        placeholder: what stands for an image; ``{i}`` is its number, from 1.
        end: what every prompt ends with.

    Example:
        >>> from transformers.utils.chat_template_utils import render_jinja_template
        >>> parts = [{"type": "text", "text": "a cat"}, {"type": "image"}]
        >>> messages = [{"role": "system", "content": "Find: "}, {"role": "user", "content": parts}]
        >>> render_jinja_template([messages], chat_template=chat_template("<image>"))[0]
        ['<image> Find: a cat']
    """
    before, _, after = placeholder.partition("{i}")
    image = f"({_quoted(before)} ~ i ~ {_quoted(after)})" if "{i}" in placeholder else _quoted(placeholder)
    return _TEMPLATE.substitute(image=image, end=_quoted(end))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
