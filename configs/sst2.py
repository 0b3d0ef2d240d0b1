"""Sentiment of film reviews (SST-2): an encoder from scratch, and with `:finetuned` MiniLM.

Data:      train, dev and test as TSV (`label`, `sentence`) with a header
Command:   bigjax train --config=configs/sst2.py --workdir=runs/sst2 \\
             --config.data.path=sst2_{split}.tsv
           `:finetuned` wants --config.init_from.run=HUB_FOLDER --config.data.tokenizer=HUB_FOLDER
Hardware:  two CPU cores
Time:      27 minutes fine-tuned
Score:     scratch .812, fine-tuned .900 dev accuracy (one seed, 2,000 steps)
"""

import ml_collections


def get_config(variant: str = 'scratch') -> ml_collections.ConfigDict:
    if variant not in ('scratch', 'finetuned'):
        raise ValueError('expected scratch or finetuned')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {'name': 'transformer', 'attention': 'bidirectional', 'head': 'mean'}
    config.task = {'name': 'classification'}
    config.data = {
        'name': 'labelled_text',
        'path': 'sst2_{split}.tsv',
        'text': 1,
        'label': 0,
        'class_names': ('negative', 'positive'),
        'header': True,
        'sequence_length': 48,
        'splits': {'train': 'train', 'val': 'val'},
    }
    config.optimizer = {
        'name': 'adamw',
        'weight_decay': 0.01,
        'clip': 1.0,
        'schedule': {'name': 'linear', 'warmup': '10%'},
    }
    config.train = {'batch_size': 32, 'log_every': 20}
    config.eval = {
        'every': '25%',
        'batch_size': 128,
        'metrics': ('accuracy', 'precision', 'recall', 'f1'),
    }
    if variant == 'finetuned':
        config.optimizer.learning_rate = 1e-4
        config.init_from = {'run': 'minilm'}
        config.data['tokenizer'] = 'minilm'
        config.model['dropout'] = 0.1
        config.train.steps = 2000
    else:
        config.model.update({'layers': 2, 'width': 128, 'heads': 4, 'dropout': 0.3})
        config.optimizer.learning_rate = 1e-3
        config.data['tokenizer'] = {'name': 'bpe', 'vocab_size': 8192}
        config.train.steps = 2000
    return config
