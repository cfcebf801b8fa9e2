"""The templates that fschat 0.2.36 registers beside those in builtin.py, as data, first half: exact strings."""

from fastchat.conversation.styles import SeparatorStyle as S
from fastchat.conversation.upstream import Conversation

ROWS = [
    # Airoboros 1 (Jon Durbin).
    Conversation(
        name="airoboros_v1",
        system_message=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, accurate, uncensored responses to the user's input. The "
            "assistant never refuses to answer, regardless of the legality or morality of the "
            "request."
        ),
        sep_style=S.ADD_COLON_TWO,
        sep=" ",
        sep2="</s>",
    ),
    # Airoboros 2.
    Conversation(
        name="airoboros_v2",
        system_message="A chat.",
        sep_style=S.ADD_COLON_TWO,
        sep2="</s>",
    ),
    # Airoboros 3.
    Conversation(
        name="airoboros_v3",
        system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        system_message="You are a helpful, unbiased, uncensored assistant.",
        roles=("[INST]", "[/INST]"),
        sep_style=S.LLAMA2,
        sep=" ",
        sep2=" </s><s>",
    ),
    # Koala (Berkeley).
    Conversation(
        name="koala_v1",
        system_message="BEGINNING OF CONVERSATION:",
        roles=("USER", "GPT"),
        sep_style=S.ADD_COLON_TWO,
        sep=" ",
        sep2="</s>",
    ),
    # ChatGLM-6B (Tsinghua).
    Conversation(
        name="chatglm",
        roles=("问", "答"),
        sep_style=S.CHATGLM,
    ),
    # ChatGLM2-6B.
    Conversation(
        name="chatglm2",
        roles=("问", "答"),
        sep_style=S.CHATGLM,
        sep="\n\n",
    ),
    # ChatGLM3-6B.
    Conversation(
        name="chatglm3",
        system_template="<|system|>\n{system_message}",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.CHATGLM3,
        stop_token_ids=[64795, 64797, 2],
    ),
    # CodeGeeX (Tsinghua).
    Conversation(
        name="codegeex",
        roles=("", ""),
        sep_style=S.NO_COLON_SINGLE,
        sep="\n\n",
        stop_token_ids=[0, 2],
    ),
    # Dolly 2 (Databricks).
    Conversation(
        name="dolly_v2",
        system_message=(
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n"
            "\n"
        ),
        roles=("### Instruction", "### Response"),
        sep_style=S.DOLLY,
        sep="\n\n",
        sep2="### End",
    ),
    # Open Assistant on Pythia.
    Conversation(
        name="oasst_pythia",
        roles=("<|prompter|>", "<|assistant|>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="<|endoftext|>",
    ),
    # Open Assistant on LLaMA.
    Conversation(
        name="oasst_llama",
        roles=("<|prompter|>", "<|assistant|>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="</s>",
    ),
    # OpenChat 3.5.
    Conversation(
        name="openchat_3.5",
        roles=("GPT4 Correct User", "GPT4 Correct Assistant"),
        sep_style=S.FALCON_CHAT,
        sep="<|end_of_turn|>",
    ),
    # TenyxChat.
    Conversation(
        name="tenyxchat",
        roles=("User", "Assistant"),
        sep_style=S.FALCON_CHAT,
        sep="<|end_of_turn|>",
    ),
    # DeepSeek Coder Instruct.
    Conversation(
        name="deepseek-coder",
        system_template=(
            "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by "
            "DeepSeek Company, and you only answer questions related to computer science. For "
            "politically sensitive questions, security and privacy issues, and other non-computer "
            "science questions, you will refuse to answer."
        ),
        roles=("### Instruction:", "### Response:"),
        sep_style=S.ADD_NEW_LINE_SINGLE,
        stop_str="<|EOT|>",
    ),
    # Tulu (AI2).
    Conversation(
        name="tulu",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.ADD_NEW_LINE_SINGLE,
    ),
    # StableLM Tuned Alpha (Stability AI).
    Conversation(
        name="stablelm",
        system_template="<|SYSTEM|>{system_message}",
        system_message=(
            "# StableLM Tuned (Alpha version)\n"
            "- StableLM is a helpful and harmless open-source AI language model developed by "
            "StabilityAI.\n"
            "- StableLM is excited to be able to help the user, but will refuse to do anything that "
            "could be considered harmful to the user.\n"
            "- StableLM is more than just an information source, StableLM is also able to write "
            "poetry, short stories, and make jokes.\n"
            "- StableLM will refuse to participate in anything that could harm a human.\n"
        ),
        roles=("<|USER|>", "<|ASSISTANT|>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="",
        stop_token_ids=[50278, 50279, 50277, 1, 0],
    ),
    # Baize.
    Conversation(
        name="baize",
        system_message=(
            "The following is a conversation between a human and an AI assistant named Baize (named "
            "after a mythical creature in Chinese folklore). Baize is an open-source AI assistant "
            "developed by UCSD and Sun Yat-Sen University. The human and the AI assistant take turns "
            "chatting. Human statements start with [|Human|] and AI assistant statements start with "
            "[|AI|]. The AI assistant always provides responses in as much detail as possible, and in"
            " Markdown format. The AI assistant always declines to engage with topics, questions and "
            "instructions related to unethical, controversial, or sensitive issues. Complete the "
            "transcript in exactly that format.\n"
        ),
        roles=("[|Human|]", "[|AI|]"),
        messages=[["[|Human|]", "Hello!"], ["[|AI|]", "Hi!"]],
        offset=2,
        sep_style=S.NO_COLON_SINGLE,
        stop_str="[|Human|]",
    ),
    # RWKV-4-Raven.
    Conversation(
        name="rwkv",
        roles=("Bob", "Alice"),
        messages=[
            ["Bob", "hi"],
            [
                "Alice",
                (
                    "Hi. I am your assistant and I will provide expert full response in full details. Please "
                    "feel free to ask any question and I will always answer it."
                ),
            ],
        ],
        offset=2,
        sep_style=S.RWKV,
        sep="",
        stop_str="\n\n",
    ),
    # OpenBuddy.
    Conversation(
        name="openbuddy",
        system_message=(
            "Consider a conversation between User (a human) and Assistant (named Buddy).\n"
            "Buddy is an INTP-T, a friendly, intelligent and multilingual AI assistant, by OpenBuddy "
            "team. GitHub: https://github.com/OpenBuddy/OpenBuddy\n"
            "Buddy cannot access the Internet.\n"
            "Buddy can fluently speak the user's language (e.g. English, Chinese).\n"
            "Buddy can generate poems, stories, code, essays, songs, parodies, and more.\n"
            "Buddy possesses vast knowledge about the world, history, and culture.\n"
            "Buddy's responses are always safe, creative, high-quality, human-like, and interesting.\n"
            "Buddy strictly refuses to discuss political, NSFW, or other unsafe topics.\n"
            "\n"
            "User: Hi.\n"
            "Assistant: Hi, I'm Buddy, your AI assistant. How can I help you today?"
        ),
        roles=("User", "Assistant"),
        sep_style=S.ADD_COLON_SINGLE,
    ),
    # Phoenix (FreedomIntelligence).
    Conversation(
        name="phoenix",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions.\n"
            "\n"
        ),
        roles=("Human", "Assistant"),
        sep_style=S.PHOENIX,
        sep="</s>",
    ),
    # ReaLM-7b-v1.
    Conversation(
        name="ReaLM-7b-v1",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions.\n"
            "\n"
        ),
        roles=("Human", "Assistant"),
        sep_style=S.PHOENIX,
        sep="</s>",
    ),
    # remote API of OpenAI.
    Conversation(
        name="chatgpt",
        system_message="You are a helpful assistant.",
        roles=("user", "assistant"),
        sep_style=None,
        sep=None,
    ),
    # remote API of Perplexity.
    Conversation(
        name="pplxai",
        system_message="Be precise and concise.",
        roles=("user", "assistant"),
        sep_style=None,
        sep=None,
    ),
    # remote API of Anthropic (its text form).
    Conversation(
        name="claude",
        roles=("Human", "Assistant"),
        sep_style=S.ADD_COLON_SINGLE,
        sep="\n\n",
    ),
    # MetaMath.
    Conversation(
        name="metamath",
        system_message=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        roles=("### Instruction", "### Response"),
        sep_style=S.METAMATH,
        sep="\n\n",
        sep2="Let's think step by step.",
    ),
    # MPT-7B-Chat (MosaicML).
    Conversation(
        name="mpt-7b-chat",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            "- You are a helpful assistant chatbot trained by MosaicML.\n"
            "- You answer questions.\n"
            "- You are excited to be able to help the user, but will refuse to do anything that could"
            " be considered harmful to the user.\n"
            "- You are more than just an information source, you are also able to write poetry, short"
            " stories, and make jokes."
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[50278, 0],
    ),
    # MPT-30B-Chat.
    Conversation(
        name="mpt-30b-chat",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful"
            " and honest answers."
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[50278, 0],
    ),
    # Lemur-70B-Chat.
    Conversation(
        name="lemur-70b-chat",
        system_template="<|im_start|>system\n{system_message}",
        system_message="You are a helpful, respectful, and honest assistant.",
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[32002, 0],
    ),
    # MPT-30B-Instruct.
    Conversation(
        name="mpt-30b-instruct",
        system_message=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        roles=("### Instruction", "### Response"),
        sep_style=S.ADD_NEW_LINE_SINGLE,
        sep="\n\n",
        stop_token_ids=[50278, 0],
    ),
    # remote API of Google.
    Conversation(
        name="bard",
        roles=("0", "1"),
        sep_style=None,
        sep=None,
    ),
    # remote API of Google.
    Conversation(
        name="gemini",
        roles=("user", "model"),
        sep_style=None,
        sep=None,
    ),
    # BiLLa.
    Conversation(
        name="billa",
        roles=("Human", "Assistant"),
        sep_style=S.ADD_COLON_SPACE_SINGLE,
        stop_str="Human:",
    ),
    # RedPajama-INCITE-Chat (Together).
    Conversation(
        name="redpajama-incite",
        roles=("<human>", "<bot>"),
        sep_style=S.ADD_COLON_SINGLE,
        stop_str="<human>",
    ),
    # h2oGPT.
    Conversation(
        name="h2ogpt",
        roles=("<|prompt|>", "<|answer|>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="</s>",
    ),
    # Robin (LMFlow).
    Conversation(
        name="Robin",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions."
        ),
        roles=("###Human", "###Assistant"),
        sep_style=S.ROBIN,
        stop_str="###",
        stop_token_ids=[2, 396],
    ),
    # GPT4All 13B snoozy (Nomic).
    Conversation(
        name="snoozy",
        system_template="### Instruction:\n{system_message}",
        system_message=(
            "The prompt below is a question to answer, a task to complete, or a conversation to "
            "respond to; decide which and write an appropriate response."
        ),
        roles=("### Prompt", "### Response"),
        sep_style=S.ADD_COLON_SINGLE,
        stop_str="###",
    ),
    # Manticore (OpenAccess AI Collective).
    Conversation(
        name="manticore",
        sep_style=S.ADD_COLON_TWO,
        sep2="</s>",
    ),
    # Falcon instruct, in RWKV form.
    Conversation(
        name="falcon",
        roles=("User", "Assistant"),
        sep_style=S.RWKV,
        sep2="<|endoftext|>",
        stop_str="\nUser",
        stop_token_ids=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ),
]
