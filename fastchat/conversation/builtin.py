"""The built-in templates, as data: roles, separators and default system messages are exact, with their origin.

A row is written the way upstream writes it where upstream has the template, else as a table.
"""

from __future__ import annotations

from fastchat.conversation.styles import SeparatorStyle
from fastchat.conversation.template import RoleFormat, Template
from fastchat.conversation.upstream import Conversation

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
ONE_SHOT_QUESTION = "Got any creative ideas for a 10 year old’s birthday?"
ONE_SHOT_ANSWER = (
    "Of course! Here are some creative ideas for a 10-year-old's birthday party:\n"
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues and riddles"
    " for the kids to solve, leading them to hidden treasures and surprises.\n"
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive "
    "experiments. You can set up different stations with activities like making slime, erupting "
    "volcanoes, or creating simple chemical reactions.\n"
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen or white "
    "sheet. Create a cozy seating area with blankets and pillows, and serve popcorn and snacks while the "
    "kids enjoy a favorite movie under the stars.\n"
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide a "
    "variety of craft supplies like beads, paints, and fabrics, and let them create their own unique "
    "masterpieces to take home as party favors.\n"
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up different "
    "stations for activities like sack races, relay races, basketball shooting, and obstacle courses. "
    "Give out medals or certificates to the participants.\n"
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini pizzas, "
    "cupcakes, or cookies. Provide toppings, frosting, and decorating supplies, and let them get hands-on"
    " in the kitchen.\n"
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in fun "
    "training activities. Set up an obstacle course, have them design their own superhero capes or masks,"
    " and organize superhero-themed games and challenges.\n"
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. Arrange "
    "activities like hiking, nature scavenger hunts, or a picnic with games. Encourage exploration and "
    "appreciation for the outdoors.\n"
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a great "
    "celebration!"
)


# Origin: fschat 0.2.36, the strings of its registered templates.
UPSTREAM = [
    # Text goes on where it stopped; upstream's template for base models.
    Conversation(name="raw", roles=("", ""), sep_style=SeparatorStyle.NO_COLON_SINGLE, sep=""),
    # Vicuna 1.1 and later (LMSYS).
    Conversation(
        name="vicuna_v1.1",
        system_message=VICUNA_SYSTEM,
        roles=("USER", "ASSISTANT"),
        sep_style=SeparatorStyle.ADD_COLON_TWO,
        sep=" ",
        sep2="</s>",
    ),
    Conversation(
        name="one_shot",
        system_message=HUMAN_SYSTEM,
        roles=("Human", "Assistant"),
        messages=[["Human", ONE_SHOT_QUESTION], ["Assistant", ONE_SHOT_ANSWER]],
        offset=2,
        sep_style=SeparatorStyle.ADD_COLON_SINGLE,
        sep="\n### ",
        stop_str="###",
    ),
    Conversation(
        name="zero_shot",
        system_message=HUMAN_SYSTEM,
        roles=("Human", "Assistant"),
        sep_style=SeparatorStyle.ADD_COLON_SINGLE,
        sep="\n### ",
        stop_str="###",
    ),
    # Stanford Alpaca.
    Conversation(
        name="alpaca",
        system_message=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        roles=("### Instruction", "### Response"),
        sep_style=SeparatorStyle.ADD_COLON_TWO,
        sep="\n\n",
        sep2="</s>",
    ),
    # Llama-2-chat (Meta).
    Conversation(
        name="llama-2",
        system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        roles=("[INST]", "[/INST]"),
        sep_style=SeparatorStyle.LLAMA2,
        sep=" ",
        sep2=" </s><s>",
    ),
    # Mistral-Instruct.
    Conversation(
        name="mistral",
        system_template="[INST] {system_message}\n",
        roles=("[INST]", "[/INST]"),
        sep_style=SeparatorStyle.LLAMA2,
        sep=" ",
        sep2="</s>",
    ),
    # Qwen-Chat: ChatML with its own default message.
    Conversation(
        name="qwen-7b-chat",
        system_template="<|im_start|>system\n{system_message}",
        system_message="You are a helpful assistant.",
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=SeparatorStyle.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[151643, 151644, 151645],
        stop_str="<|endoftext|>",
    ),
    # Zephyr (Hugging Face H4).
    Conversation(
        name="zephyr",
        system_template="<|system|>\n{system_message}",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=SeparatorStyle.CHATML,
        sep="</s>",
        stop_token_ids=[2],
        stop_str="</s>",
    ),
    # DeepSeek-LLM-Chat: its BOS is the default system message.
    Conversation(
        name="deepseek-chat",
        system_message="<｜begin▁of▁sentence｜>",
        roles=("User", "Assistant"),
        sep_style=SeparatorStyle.DEEPSEEK_CHAT,
        sep="\n\n",
        sep2="<｜end▁of▁sentence｜>",
        stop_str="<｜end▁of▁sentence｜>",
    ),
    # Origin: added upstream after 0.2.36. Llama-3-Instruct (Meta).
    Conversation(
        name="llama-3",
        system_template="<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
        roles=("user", "assistant"),
        sep_style=SeparatorStyle.LLAMA3,
        sep="",
        stop_str="<|eot_id|>",
        stop_token_ids=[128001, 128009],
    ),
    # Origin: added upstream after 0.2.36. Consistency LLMs (CLLM), and LLaVA's ChatML.
    Conversation(
        name="cllm",
        system_message=VICUNA_SYSTEM,
        roles=("USER", "ASSISTANT"),
        sep_style=SeparatorStyle.CLLM,
        sep=" ",
        sep2="</s>",
    ),
    Conversation(
        name="llava-chatml",
        system_template="<|im_start|>system\n{system_message}",
        system_message="Answer the questions.",
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=SeparatorStyle.CHATML,
        sep="<|im_end|>",
        stop_str="<|im_end|>",
    ),
    # Origin: added upstream after 0.2.36. Gemma-it (Google); the system message goes before the first user message.
    Conversation(
        name="gemma",
        roles=("user", "model"),
        sep_style=SeparatorStyle.GEMMA,
        sep="<end_of_turn>\n",
        stop_str="<end_of_turn>",
    ),
]

TABLES = [
    Template(
        name="chatml",
        system="<|im_start|>system\n{system_message}<|im_end|>\n",
        user=RoleFormat("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>user\n"),
        assistant=RoleFormat("<|im_start|>assistant\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
        stop_strings=("<|im_end|>",),
        origin="OpenAI's Chat Markup Language, as published in 2023; no default system message",
    ),
    Template(
        name="phi-3",
        system="<|system|>\n{system_message}<|end|>\n",
        user=RoleFormat("<|user|>\n", "<|end|>\n", "<|user|>\n"),
        assistant=RoleFormat("<|assistant|>\n", "<|end|>\n", "<|assistant|>\n"),
        stop_strings=("<|end|>",),
        origin="the chat format on the model card of microsoft/Phi-3-mini-4k-instruct",
    ),
]
