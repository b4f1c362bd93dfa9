import torch
import torch.nn.functional as F

from model.micro_sd.contrastive import instance_loss, object_features


def test_object_features_are_means_over_the_covered_patches() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    assert torch.allclose(object_features(states, torch.tensor([[1.0, 1.0, 0.0]])), torch.tensor([[0.6, 0.8]]))


def test_instance_loss_is_the_mean_negative_log_share_of_the_right_view() -> None:
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    instance = torch.tensor([0, 1, 2, 1])  # rows 1 and 3 show the same instance
    losses = []
    for anchors, others in ((first, second), (second, first)):
        for i in range(4):
            repelled = [j for j in range(4) if j == i or instance[j] != instance[i]]
            scores = torch.stack([12 * anchors[i] @ others[j] for j in repelled])
            losses.append(-scores.log_softmax(0)[repelled.index(i)])
    assert torch.allclose(instance_loss(first, second, instance), torch.stack(losses).mean(), atol=1e-5)
