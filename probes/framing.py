"""How a question is put so that a base model and a chat model both go on with the answer."""

from __future__ import annotations

from editkit.facts import fill

# Of 24 frames the one after which SmolLM2-135M-Instruct names most capitals that it knows: 76 % of 40 capitals x 4
# questions. "Question: …\nAnswer: The answer is" 68 %, its own chat template 66 %, "Short answer:" 59 %,
# "Question: …\nAnswer:" 41 %, "Q: …\nA:" 35 %, the bare question 0 %.
QUESTION_FRAME = "User: {}\nAssistant:"
QUESTION_MARKS = ("?", "？", "؟")
BEFORE, AFTER = QUESTION_FRAME.split("{}")


def is_question(text: str) -> bool:
    return text.rstrip().endswith(QUESTION_MARKS)


def framed(text: str) -> str:
    """A question in its frame; a text that is to be continued as it is."""
    return fill(QUESTION_FRAME, text) if is_question(text) else text


def asked_in(prompt: str) -> str:
    """The question in the frame at a prompt's end, which a model may repeat and then answer; empty without a frame."""
    return prompt.rpartition(BEFORE)[2].removesuffix(AFTER) if prompt.endswith(AFTER) and BEFORE in prompt else ""
