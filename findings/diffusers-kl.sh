#!/bin/sh
# What posterior.kl() is in diffusers, by the posterior.
#
# diffusers 0.42.1, torch 2.13.0; CPU.
#
# AutoencoderKL's gives a KL in nats for each image, (B,). The same class is the posterior of the autoencoders of video
# (Wan, HunyuanVideo, CogVideoX, LTX, Mochi), and sums over the dimensions 1 to 3 there too: of latents (B, C, T, H, W) kl()
# is (B, W), a number for each column of pixels, and its mean is the KL of a video over W. nll() likewise.
#
# Audio (Stable Audio's Oobleck) has a class of the same methods. Its kl() is a mean over batch and time, and twice the
# KL, without the 1/2. kl(other) has the log-variances' difference the wrong way round: from a posterior with σ = 0.018 to
# one with σ = 1.0 it is -36, where the KL is 14, and a loss of it pays for being far from the other.
#
# Seen: (2,) of images, (2, 5) of videos with W = 5, whose mean is a fifth of the KL; Oobleck's kl() 2.000 times the KL of
# a time step, kl(other) -36.03 in place of 28.03, which is what kl() says against the same σ = 1.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 diffusers==0.42.1
"$folder/v/bin/python" -W ignore - <<'PY'
import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.distributions import Normal, kl_divergence

torch.manual_seed(0)
images = DiagonalGaussianDistribution(torch.randn(2, 8, 4, 5))
assert images.kl().shape == (2,)
videos = DiagonalGaussianDistribution(torch.randn(2, 8, 3, 4, 5))
exact = kl_divergence(Normal(videos.mean, videos.std), Normal(0.0, 1.0)).sum((1, 2, 3, 4))
print(f"videos: kl() of shape {tuple(videos.kl().shape)} and mean {videos.kl().mean():.2f}, KL of a video {exact.mean():.2f}")
assert videos.kl().shape == (2, 5) and videos.nll(torch.randn(2, 4, 3, 4, 5)).shape == (2, 5)
torch.testing.assert_close(videos.kl().sum(1), exact)

audio = OobleckDiagonalGaussianDistribution(torch.randn(2, 8, 5))
exact = kl_divergence(Normal(audio.mean, audio.std), Normal(0.0, 1.0)).sum(1).mean()
print(f"audio: kl() {audio.kl():.3f}, KL of a time step {exact:.3f}")
torch.testing.assert_close(audio.kl(), 2 * exact)

narrow = OobleckDiagonalGaussianDistribution(torch.cat([torch.zeros(1, 4, 5), torch.full((1, 4, 5), -4.0)], 1))
wide = OobleckDiagonalGaussianDistribution(torch.cat([torch.zeros(1, 4, 5), torch.full((1, 4, 5), 0.5411665)], 1))
exact = kl_divergence(Normal(narrow.mean, narrow.std), Normal(wide.mean, wide.std)).sum(1).mean()
print(f"σ {narrow.std.max():.3f} to {wide.std.max():.3f}: kl(other) {narrow.kl(wide):.2f}, kl() {narrow.kl():.2f}, KL {exact:.2f}")
assert narrow.kl(wide) < -30 and 13 < exact < 15
torch.testing.assert_close(narrow.kl(), 2 * exact, rtol=1e-3, atol=0)
PY
