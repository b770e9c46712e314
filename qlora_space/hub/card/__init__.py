"""The model card that is published with an adapter: `model_card` writes it, `how_to_load` its code, `escape` keeps
strangers' text plain."""
