"""transformers' greedy tokens: what every runner of an exported file is held against."""
import torch

from course_lib.loading import GREEDY

ASK = "What is the capital of France?"


def prompt_ids(tokenizer, prompt):
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def greedy(model, tokenizer, prompt, count):
    """transformers' greedy continuation, without the token that ends it."""
    ids = prompt_ids(tokenizer, prompt)
    with torch.inference_mode():
        output = model.generate(torch.tensor([ids]), **GREEDY, max_new_tokens=count,
                                pad_token_id=tokenizer.pad_token_id)
    tokens = output[0, len(ids):].tolist()
    return tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens
