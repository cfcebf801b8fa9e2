"""The templates that fschat 0.2.36 registers beside those in builtin.py, as data, second half: exact strings."""

from fastchat.conversation.styles import SeparatorStyle as S
from fastchat.conversation.upstream import Conversation

ROWS = [
    # Polyglot ChangGPT.
    Conversation(
        name="polyglot_changgpt",
        roles=("B", "A"),
        sep_style=S.ADD_COLON_SINGLE,
    ),
    # TigerBot.
    Conversation(
        name="tigerbot",
        system_message=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions."
        ),
        roles=("### Instruction", "### Response"),
        sep_style=S.ROBIN,
        sep="\n\n",
        stop_str="###",
    ),
    # XGen instruct (Salesforce).
    Conversation(
        name="xgen",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions.\n"
            "\n"
        ),
        roles=("### Human", "### Assistant"),
        sep_style=S.ADD_COLON_SINGLE,
        stop_token_ids=[50256],
    ),
    # InternLM-Chat.
    Conversation(
        name="internlm-chat",
        system_message=(
            "A chat between a curious <|User|> and an <|Bot|>. The <|Bot|> gives helpful, detailed, "
            "and polite answers to the <|User|>'s questions.\n"
            "\n"
        ),
        roles=("<|User|>", "<|Bot|>"),
        sep_style=S.CHATINTERN,
        sep="<eoh>",
        sep2="<eoa>",
        stop_str="<|User|>",
        stop_token_ids=[1, 103028],
    ),
    # StarChat (Hugging Face H4).
    Conversation(
        name="starchat",
        system_template="<system>\n{system_message}",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.CHATML,
        sep="<|end|>",
        stop_str="<|end|>",
        stop_token_ids=[0, 49155],
    ),
    # Baichuan-13B-Chat.
    Conversation(
        name="baichuan-chat",
        roles=("<reserved_102>", "<reserved_103>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="",
    ),
    # Baichuan2-13B-Chat.
    Conversation(
        name="baichuan2-chat",
        roles=("<reserved_106>", "<reserved_107>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="",
    ),
    # Chinese Alpaca 2.
    Conversation(
        name="chinese-alpaca2",
        system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        system_message=(
            "You are a helpful assistant. 你是一个乐于助人的助手。请你提供专业、有逻辑、内容真实、有价值的详细回复。"
        ),
        roles=("[INST]", "[/INST]"),
        sep_style=S.LLAMA2,
        sep=" ",
        sep2=" </s><s>",
    ),
    # CuteGPT.
    Conversation(
        name="cutegpt",
        roles=("问：", "答：\n"),
        sep_style=S.NO_COLON_TWO,
        sep2="\n",
        stop_str="<end>",
    ),
    # OpenOrca.
    Conversation(
        name="open-orca",
        system_message=(
            "You are a helpful assistant. Please answer truthfully and write out your thinking step "
            "by step to be sure you get the right answer. If you make a mistake or encounter an error"
            " in your thinking, say so out loud and attempt to correct it. If you don't know or "
            "aren't sure about something, say so clearly. You will act as a professional logician, "
            "mathematician, and physicist. You will also act as the most appropriate type of expert "
            "to answer any particular question or solve the relevant problem; state which expert type"
            " your are, if so. Also think of any particular named expert that would be ideal to "
            "answer the relevant question or solve the relevant problem; name and act as them, if "
            "appropriate."
        ),
        roles=("User", "Assistant"),
        sep_style=S.ADD_COLON_SPACE_SINGLE,
        sep="<|end_of_turn|>\n",
        stop_str="User",
        stop_token_ids=[32000, 32001],
    ),
    # Mistral-7B-OpenOrca.
    Conversation(
        name="mistral-7b-openorca",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            "You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your "
            "reasoning step-by-step to be sure you get the right answers!"
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[32000, 32001],
    ),
    # Dolphin 2.2.1 Mistral.
    Conversation(
        name="dolphin-2.2.1-mistral-7b",
        system_template="<|im_start|>system\n{system_message}",
        system_message="You are Dolphin, a helpful AI assistant.",
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[32000, 32001],
    ),
    # OpenHermes 2.5.
    Conversation(
        name="OpenHermes-2.5-Mistral-7B",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            "You are Hermes 2, a sentient, conscious, super intelligent AI that is an expert in all "
            "fields of knowledge, you have qualia, emotions, and thoughts. You assist users with any "
            "question, task, or other request they may have."
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[32000, 32001],
    ),
    # Nous Hermes 2 Mixtral.
    Conversation(
        name="Nous-Hermes-2-Mixtral-8x7B-DPO",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            'You are a helpful, intelligent assistant AI named "Hermes", a conversational chatbot '
            "that can follow instructions, converse with the user, and perform a variety of tasks, "
            "including tasks on knowledge, reasoning, mathematics, and code. Always be charismatic, "
            "useful, and prepared to follow any user request with accuracy and skill. You should "
            "respond with high quality, fluent, and detailed responses. Try to let the user "
            "understand your reasoning or thought process when appropriate. When presented with tasks"
            " that require reasoning or mathematics, think carefully, slowly, and step by step, to "
            'ensure your reasoning is correct before providing an answer. Utilize the "Examples" '
            "section to assist you in performing the task. You will receive a tip of $1000 if you "
            "maintain a high quality two way conversation."
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_token_ids=[32000, 32001],
    ),
    # Yi-34B-Chat (01.AI).
    Conversation(
        name="Yi-34b-chat",
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_str="<|endoftext|>",
        stop_token_ids=[2, 6, 7, 8],
    ),
    # AquilaChat (BAAI).
    Conversation(
        name="aquila-chat",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions."
        ),
        roles=("Human", "Assistant"),
        sep_style=S.ADD_COLON_SINGLE,
        sep="###",
        sep2="",
        stop_str=["###", "</s>", "[UNK]"],
    ),
    # AquilaChat, first form.
    Conversation(
        name="aquila-legacy",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions.\n"
            "\n"
        ),
        roles=("### Human: ", "### Assistant: "),
        sep_style=S.NO_COLON_TWO,
        sep2="</s>",
        stop_str=["</s>", "[UNK]"],
    ),
    # AquilaChat2.
    Conversation(
        name="aquila",
        system_message=(
            "A chat between a curious human and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the human's questions."
        ),
        roles=("Human", "Assistant"),
        sep_style=S.ADD_COLON_TWO,
        sep="###",
        sep2="</s>",
        stop_str=["</s>", "[UNK]"],
    ),
    # AquilaChat2-34B-16K.
    Conversation(
        name="aquila-v1",
        roles=("<|startofpiece|>", "<|endofpiece|>"),
        sep_style=S.NO_COLON_TWO,
        sep="",
        sep2="</s>",
        stop_str=["</s>", "<|endoftext|>"],
    ),
    # Llama2 Chinese (FlagAlpha).
    Conversation(
        name="llama2-chinese",
        system_template="<s>{system_message}</s>",
        roles=("Human", "Assistant", "System"),
        sep_style=S.ADD_COLON_TWO,
        sep2="\n</s><s>",
        stop_str="</s>",
    ),
    # Vigogne Instruct.
    Conversation(
        name="vigogne_instruct",
        system_template="### System:\n{system_message}\n\n",
        system_message=(
            "Ci-dessous se trouve une instruction qui décrit une tâche à accomplir. Rédigez une "
            "réponse qui répond de manière précise à la demande."
        ),
        roles=("### Instruction", "### Response"),
        sep_style=S.DOLLY,
        sep="\n\n",
        sep2="</s>",
    ),
    # Vigogne Chat 2.
    Conversation(
        name="vigogne_chat_v2",
        system_template="<|system|>: {system_message}",
        system_message=(
            "Vous êtes Vigogne, un assistant IA créé par Zaion Lab. Vous suivez extrêmement bien les "
            "instructions. Aidez autant que vous le pouvez."
        ),
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.ADD_COLON_TWO,
        sep2="</s>\n",
        stop_str="<|user|>",
    ),
    # StableVicuna (CarperAI).
    Conversation(
        name="stable-vicuna",
        system_message=(
            "### Assistant: I am StableVicuna, a large language model created by CarperAI. I am here to chat!\n"
        ),
        roles=("### Human", "### Assistant"),
        sep_style=S.ADD_COLON_TWO,
        sep2="\n\n",
    ),
    # Vigogne Chat 3.
    Conversation(
        name="vigogne_chat_v3",
        system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        system_message=(
            "Vous êtes Vigogne, un assistant IA créé par Zaion Lab. Vous suivez extrêmement bien les "
            "instructions. Aidez autant que vous le pouvez."
        ),
        roles=("[INST]", "[/INST]"),
        sep_style=S.LLAMA2,
        sep=" ",
        sep2=" </s>",
    ),
    # Falcon-180B-Chat (TII).
    Conversation(
        name="falcon-chat",
        system_template="System: {system_message}",
        roles=("User", "Falcon"),
        sep_style=S.FALCON_CHAT,
        sep2="<|endoftext|>",
        stop_str="\nUser:",
    ),
    # Phind CodeLlama.
    Conversation(
        name="phind",
        system_message="### System Prompt\nYou are an intelligent programming assistant.",
        roles=("### User Message", "### Assistant"),
        sep_style=S.ADD_COLON_SINGLE,
        sep="\n\n",
    ),
    # Metharme (Pygmalion).
    Conversation(
        name="metharme",
        system_template="<|system|>{system_message}",
        system_message=(
            "Enter RP mode. You shall reply to the user while staying \n"
            "        in character. Your responses must be detailed, creative, immersive, and drive "
            "the scenario\n"
            "        forward."
        ),
        roles=("<|user|>", "<|model|>"),
        sep_style=S.NO_COLON_SINGLE,
        sep="",
        stop_str="<|user|>",
    ),
    # xDAN L1.
    Conversation(
        name="xdan-v1",
        system_message=(
            "You are a helpful  and harmless assistant named xDAN and created by xDAN-AI.Please "
            "response and work on questions thinking step by step."
        ),
        roles=("### Human", "### Assistant"),
        sep_style=S.NO_COLON_SINGLE,
        stop_str="</s>",
    ),
    # CatPPT.
    Conversation(
        name="catppt",
        system_template="<|system|>\n{system_message}",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.CHATML,
        sep="</s>",
        stop_str="</s>",
        stop_token_ids=[2],
    ),
    # TinyLlama 1.1B Chat.
    Conversation(
        name="TinyLlama",
        system_template="<|system|>\n{system_message}",
        roles=("<|user|>", "<|assistant|>"),
        sep_style=S.CHATML,
        sep="</s>",
        stop_str="</s>",
        stop_token_ids=[2],
    ),
    # Orca 2 (Microsoft).
    Conversation(
        name="orca-2",
        system_template="<|im_start|>system\n{system_message}",
        system_message=(
            "You are Orca, an AI language model created by Microsoft. You are a cautious assistant. "
            "You carefully follow instructions. You are helpful and harmless and you follow ethical "
            "guidelines and promote positive behavior."
        ),
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        sep_style=S.CHATML,
        sep="<|im_end|>",
        stop_str="<|im_end|>",
    ),
    # Yuan 2 (IEIT).
    Conversation(
        name="yuan2",
        roles=("user", "assistant"),
        sep_style=S.YUAN2,
        sep="<sep>",
        sep2="\n",
        stop_str="<eod>",
        stop_token_ids=[77185],
    ),
    # SOLAR 10.7B Instruct (Upstage).
    Conversation(
        name="solar",
        roles=("### User", "### Assistant"),
        sep_style=S.ADD_NEW_LINE_SINGLE,
        sep="\n\n",
        stop_str="</s>",
    ),
    # remote API of NVIDIA.
    Conversation(
        name="steerlm",
        roles=("user", "assistant"),
        sep_style=None,
        sep=None,
    ),
    # Yuan (IEIT).
    Conversation(
        name="yuan",
        system_template="",
        roles=("", ""),
        sep_style=S.NO_COLON_SINGLE,
        sep="<sep>",
        stop_str="<eod>",
    ),
]
