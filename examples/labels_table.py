# %% [markdown]
# # Wrong labels in a table
# scikit-learn's breast cancer data, 30 features a patient.
# `afterfit labels examples/labels_table.py`.

# %%
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import afterfit as af


# %%
def factory() -> af.Trained:
    """A small network trained on 400 patients, a tenth of them with the wrong diagnosis."""
    torch.manual_seed(0)
    table = load_breast_cancer()
    rows = torch.tensor(table.data, dtype=torch.float32)
    inputs = (rows - rows.mean(0)) / rows.std(0)
    order = torch.randperm(len(rows))
    inputs, target = inputs[order], torch.tensor(table.target)[order]
    held_out = (inputs[400:], target[400:])
    inputs, rows = inputs[:400], rows[order][:400]
    wrong = torch.rand(len(inputs)) < 0.1
    labels = target[:400] ^ wrong
    net = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    names = list(table.feature_names[:6])
    show = lambda i: dict(zip(names, rows[i, :6].tolist(), strict=True))  # noqa: E731
    return af.Trained(
        net, (inputs, labels), test=held_out, classes=table.target_names, show=show, wrong=wrong
    )


# %%
if __name__ == "__main__":
    trained = factory()
    issues = af.find_label_issues(trained.problem(), trained.batches())
    print(issues.head(10))
