from eigenscope.results.hyperparameters import flat_hyperparameters


def test_arguments_become_one_value_a_column():
    row = flat_hyperparameters(
        {
            "net": {
                "class_path": "eigenscope.nn.DeiT",
                "init_args": {
                    "width": 96,
                    "taps": {"layers": [1, 2], "features": "svd", "norm": None},
                    "loss": "inner",
                    "head": {"class_path": "torch.nn.Linear"},
                    "bias": True,
                },
            },
            "optimizer": {
                "class_path": "SplitOptimizer",
                "init_args": {
                    "lr": 0.1,
                    "matrix": {
                        "class_path": "SOAP",
                        "init_args": {"betas": [0.9, 0.95], "fp32_matmul_prec": "high", "mode": "inner", "loss": "x"},
                    },
                    "other": {"class_path": "torch.optim.AdamW", "init_args": {"amsgrad": False}},
                    "mode": "outer",
                },
            },
            "lr_scheduler": None,
            "loss": "mse",
            "mixtures": ("singles", "all"),
            "beta": 0.01,
            "_instantiator": "lightning",
        }
    )
    assert row == {
        "net": "DeiT",
        "width": 96,
        "taps": "layers=1,2 features=svd norm=none",
        "net.loss": "inner",
        "head": "Linear",
        "bias": "true",
        "optimizer": "SplitOptimizer",
        "fp32_matmul_prec": "high",
        "mode": "outer",
        "lr_scheduler": "none",
        "loss": "mse",
        "mixtures": "singles,all",
        "beta": 0.01,
    }
    assert type(row["width"]) is int


def test_what_is_no_plain_value_goes_by_its_class():
    assert flat_hyperparameters({"net": object(), "optimizer": object()}) == {"net": "object", "optimizer": "object"}
    assert flat_hyperparameters({}) == {}
