import pytest
import torch
from torch import nn

from lineavae.nn import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder


def linear_sizes(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_mlp_of_the_paper() -> None:
    """784-1024-512-k-512-1024-784, appendix E."""
    assert linear_sizes(MLPEncoder(784, 200)) == [(784, 1024), (1024, 512), (512, 400)]
    assert linear_sizes(MLPDecoder(200, 784)) == [(200, 512), (512, 1024), (1024, 784)]
    encoder, decoder = MLPEncoder(784, 200), MLPDecoder(200, 784)
    assert sum(isinstance(m, nn.ReLU) for m in encoder.modules()) == 2
    assert sum(isinstance(m, nn.ReLU) for m in decoder.modules()) == 2
    mean, logvar = encoder(torch.rand(3, 1, 28, 28))
    assert mean.shape == logvar.shape == (3, 200)
    assert decoder(mean).shape == (3, 784)


def test_convolutions_of_higgins() -> None:
    """Table 1 of beta-VAE, CelebA: 32, 32, 64, 64 channels, 4 x 4, stride 2, and 256 units."""
    encoder, decoder = ConvEncoder(3, 500), ConvDecoder(500, 3)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 32, 64, 64]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((4, 4), (2, 2))}
    assert linear_sizes(encoder) == [(1024, 256), (256, 1000)]
    transposed = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in transposed] == [64, 32, 32, 3]
    assert linear_sizes(decoder) == [(500, 256), (256, 1024)]
    mean, logvar = encoder(torch.rand(2, 3, 64, 64))
    assert mean.shape == logvar.shape == (2, 500)
    assert decoder(mean).shape == (2, 3, 64, 64)


def test_logvar_bound() -> None:
    torch.manual_seed(0)
    bounded, free = MLPEncoder(4, 2, (), logvar_bound=3.0), MLPEncoder(4, 2, (), logvar_bound=None)
    free.load_state_dict(bounded.state_dict())
    x = torch.tensor([1e-3, 1.0, 1e4])[:, None] * torch.randn(3, 4)
    raw, logvar = free(x)[1].double(), bounded(x)[1]
    torch.testing.assert_close(logvar.double(), 3 * torch.tanh(raw / 3), rtol=1e-6, atol=1e-6)
    assert logvar.abs().max() <= 3
    torch.testing.assert_close(bounded(x)[0], free(x)[0])


def test_bound_is_smooth() -> None:
    encoder = MLPEncoder(1, 1, (), logvar_bound=10.0).double()
    x = torch.tensor([[12.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x)[1], x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: MLPEncoder(4, 2, logvar_bound=0.0),
            ValueError,
            "MLPEncoder: logvar_bound must be finite and > 0",
        ),
        (lambda: MLPEncoder(0, 2), ValueError, "MLPEncoder: every size must be at least 1, got 0"),
        (lambda: MLPDecoder(2, 4, (3.5,)), TypeError, "MLPDecoder: every size must be an int, got float"),
        (lambda: ConvEncoder(0, 2), ValueError, "ConvEncoder: channels must be at least 1, got 0"),
        (lambda: ConvDecoder(0), ValueError, "ConvDecoder: latent_dim must be at least 1, got 0"),
    ],
)
def test_errors(make: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
