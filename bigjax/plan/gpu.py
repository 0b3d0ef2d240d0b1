def target_config(name): raise NotImplementedError
