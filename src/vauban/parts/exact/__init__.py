"""Proofs for models whose answer is known: linear models, nearest neighbours, trees and small ensembles of trees."""
